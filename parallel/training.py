"""Driving one training step with megatron-core: gradient buffers, the schedule, their reduction.

model = DataParallel(mmdit, mesh, ...)          megatron's DistributedDataParallel
losses = model.forward_backward(step, batches)  megatron's schedule over the microbatches, gradients reduced
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

from .layers import ShardedModule
from .megatron import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    TransformerConfig,
    finalize_model_grads,
    get_forward_backward_func,
)
from .mesh import Mesh

ForwardStep = Callable[[Any, torch.nn.Module], torch.Tensor]
"""(microbatch, model) -> mean loss of the microbatch, 0-D."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What megatron's transformer configuration asks to be told; its own layers, which would use it, are not used."""

    layers: int
    width: int
    heads: int


class DataParallel:
    """A model in megatron's gradient buffers, which the distributed optimizer cuts over data and context ranks."""

    def __init__(self, module: ShardedModule, mesh: Mesh, shape: Shape, dtype: torch.dtype):
        self.module = module
        self.mesh = mesh
        config = TransformerConfig(
            num_layers=shape.layers,
            hidden_size=shape.width,
            num_attention_heads=shape.heads,
            tensor_model_parallel_size=mesh.tensor.size(),
            pipeline_model_parallel_size=mesh.pipeline.size(),
            context_parallel_size=mesh.context.size(),
            sequence_parallel=mesh.config.sequence,
            params_dtype=dtype,
            pipeline_dtype=dtype,
            bf16=dtype == torch.bfloat16,
            gradient_accumulation_fusion=False,
        )
        buffers = DistributedDataParallelConfig(
            grad_reduce_in_fp32=True,
            overlap_grad_reduce=False,
            use_distributed_optimizer=True,
            average_in_collective=False,
        )
        self.wrapped = DistributedDataParallel(config, buffers, module)
        config.finalize_model_grads_func = finalize_model_grads
        config.no_sync_func = self.wrapped.no_sync

    def forward_backward(self, step: ForwardStep, batches: Iterable[Any], count: int) -> torch.Tensor:
        """Forward and backward of `count` microbatches, gradients averaged over the data-parallel ranks.

        Returns this rank's mean loss, 0-D fp32, still on the device.
        """
        self.wrapped.zero_grad_buffer()

        def forward_step(iterator, model):
            loss = step(next(iterator), model)
            # Cloned: the schedule divides `output` by the microbatch count in place.
            return loss, lambda output: (output, {"loss": output.detach().float().clone()})

        reports = get_forward_backward_func()(
            forward_step_func=forward_step,
            data_iterator=iter(batches),
            model=[self.wrapped],
            num_microbatches=count,
            # Only pipeline stages read these two, for the shape of what they receive.
            seq_length=1,
            micro_batch_size=1,
        )
        return torch.stack([report["loss"] for report in reports]).mean()
