"""The process group backend `hccl` of the simulated device: gloo, on the very memory that the device's tensors are.

A collective takes only tensors of the device, as Huawei's does: what lies on the CPU is refused.
"""

from datetime import timedelta

import torch
import torch.distributed as distributed
from torch.distributed import ProcessGroup, ProcessGroupGloo, Store

NOT_ADDED = (torch.float64, torch.bool, torch.uint8)
"""HcclAllReduce of Atlas A2 takes int8 to int64, fp16, bf16 and fp32 (CANN 8.5, HCCL API reference)."""


class ProcessGroupSimulatedHccl(ProcessGroup):
    """Hands every collective on to gloo, with the device's tensors seen as host memory."""

    def __init__(self, store: Store, rank: int, size: int, timeout: timedelta):
        super().__init__(rank, size)
        self._gloo = ProcessGroup(store, rank, size)
        gloo = ProcessGroupGloo(store, rank, size, timeout=timeout)
        self._gloo._register_backend(torch.device("cpu"), ProcessGroup.BackendType.GLOO, gloo)
        self._ranks = rank, size

    def rank(self) -> int:
        return self._ranks[0]

    def size(self) -> int:
        return self._ranks[1]

    def getBackendName(self) -> str:
        return "hccl"

    def barrier(self, opts=None):
        told = distributed.BarrierOptions()  # the one given names the NPU
        told.timeout = opts.timeout if opts else told.timeout
        return self._gloo.barrier(told)

    @property
    def _device_types(self) -> list[torch.device]:
        return [torch.device("npu")]

    @property
    def group_name(self) -> str:
        return distributed.distributed_c10d._world.pg_names[self]


def _host(value):
    if isinstance(value, torch.Tensor):
        if value.device.type != "npu":
            raise RuntimeError(f"hccl takes tensors of the NPU, not of {value.device}: no backend type associated")
        return torch.ops.npu_simulation.host(value.detach())
    return [_host(each) for each in value] if isinstance(value, list | tuple) else value


def _flat(value):
    return [leaf for each in value for leaf in _flat(each)] if isinstance(value, list | tuple) else [value]


def _handed_on(name: str):
    def collective(self, *arguments, **keywords):
        tensors = [each for each in _flat([*arguments, *keywords.values()]) if isinstance(each, torch.Tensor)]
        if name in SUMS and any(each.dtype in NOT_ADDED for each in tensors):
            raise RuntimeError(f"hccl cannot add {tensors[0].dtype}")
        values = [_host(each) for each in arguments]
        return getattr(self._gloo, name)(*values, **{key: _host(value) for key, value in keywords.items()})

    collective.__name__ = name
    return collective


COLLECTIVES = (
    "allgather", "allgather_coalesced", "all_gather_single", "all_gather_single_coalesced", "_allgather_base",
    "allgather_into_tensor_coalesced", "alltoall", "alltoall_base", "all_to_all_single", "broadcast", "gather", "recv",
    "recv_anysource", "scatter", "send",
)  # fmt: skip
SUMS = (
    "allreduce", "allreduce_coalesced", "reduce", "reduce_scatter", "reduce_scatter_single", "_reduce_scatter_base",
    "reduce_scatter_single_coalesced", "reduce_scatter_tensor_coalesced",
)  # fmt: skip

for _name in (*COLLECTIVES, *SUMS):
    if hasattr(ProcessGroup, _name):  # torch 2.13 renamed some
        setattr(ProcessGroupSimulatedHccl, _name, _handed_on(_name))


def register() -> None:
    distributed.Backend.register_backend("hccl", ProcessGroupSimulatedHccl, devices=["npu"])
