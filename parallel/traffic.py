"""Counts what this rank sends: every collective and every message that torch.distributed is asked for, in bytes.

The conventions are those of model/volume.py: collectives as rings of p ranks move them.
"""

from collections import Counter

import torch
import torch.distributed as distributed
from torch.utils._python_dispatch import TorchDispatchMode

from .mesh import Mesh


class Traffic(TorchDispatchMode):
    """While it is entered, adds up bytes sent, by process group and operation."""

    def __init__(self):
        super().__init__()
        self.sent: Counter[tuple[distributed.ProcessGroup, str]] = Counter()

    def __torch_dispatch__(self, function, _types, arguments=(), keywords=None):
        if function.namespace == "c10d":
            self.count(function.overloadpacket.__name__, arguments)
        return function(*arguments, **(keywords or {}))

    def count(self, name: str, arguments: tuple) -> None:
        group = next(_group(argument) for argument in arguments if isinstance(argument, torch.ScriptObject))
        ranks = group.size()
        share = (ranks - 1) / ranks
        match name:
            case "allreduce_" | "allreduce_coalesced_":
                sent = 2 * _bytes(arguments[0]) * share
            case "_allgather_base_" | "allgather_into_tensor_coalesced_" | "allgather_":
                sent = _bytes(arguments[1]) * (ranks - 1)
            case "_reduce_scatter_base_" | "reduce_scatter_tensor_coalesced_":
                sent = _bytes(arguments[1]) * share
            case "alltoall_base_":
                _, whole, _, _, pieces = arguments[:5]
                kept = pieces[group.rank()] / max(sum(pieces), 1) if pieces else 1 / ranks
                sent = _bytes(whole) * (1 - kept)
            case "send":
                sent = _bytes(arguments[0])
            case "recv_" | "recv_any_source_" | "barrier" | "monitored_barrier_":
                sent = 0
            case _:
                raise AssertionError(f"c10d::{name} is not counted yet")
        self.sent[group, name] += sent

    def by_axis(self, mesh: Mesh) -> dict[str, float]:
        """Bytes sent, by the mesh's axis; those of no axis are `world`, such as the gradient norm's."""
        axes = {axis: getattr(mesh, axis) for axis in ("tensor", "ulysses", "ring", "pipeline")}
        sent = dict.fromkeys([*axes, "data", "world"], 0.0)
        summing = distributed.get_process_group_ranks(mesh.data_and_context)
        for (group, name), size in self.sent.items():
            axis = next((axis for axis, own in axes.items() if own is group), "world")
            if group is distributed.group.WORLD:
                # Between two pipeline ranks megatron sends one way by the world's group, to overlap both ways.
                axis = "pipeline" if name == "send" else "world"
            elif axis == "world" and distributed.get_process_group_ranks(group) == summing:
                axis = "data"  # megatron has several groups over the ranks whose gradients add up
            sent[axis] += size
        return sent


def _group(argument: torch.ScriptObject) -> distributed.ProcessGroup:
    return distributed.ProcessGroup.unbox(argument)


def _bytes(tensors) -> int:
    if isinstance(tensors, torch.Tensor):
        return tensors.numel() * tensors.element_size()
    return sum(_bytes(tensor) for tensor in tensors)
