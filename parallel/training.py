"""Driving one training step with megatron-core: gradient buffers, the schedule, their reduction.

model = DataParallel(stages of the mmdit, mesh, ...)    megatron's DistributedDataParallel, one a virtual stage
loss = model.forward_backward(step, batches, ...)       megatron's schedule over the microbatches, gradients reduced
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from ..kernels.host_memory import clear
from .layers import ShardedModule, is_linear, writes_gradient
from .linear import finish_gradients
from .megatron import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    TransformerConfig,
    finalize_model_grads,
    get_forward_backward_func,
)
from .mesh import Mesh

Step = Callable[[torch.nn.Module, Any], tuple[torch.Tensor, Callable[[torch.Tensor], torch.Tensor]]]
"""(module, microbatch) -> what this stage makes of it, and, for the last stage, how that becomes the loss.

The loss is 0-D: this rank's part of the microbatch's mean.
"""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What megatron's transformer configuration asks to be told; its own layers, which would use it, are not used."""

    layers: int
    width: int
    heads: int


@dataclass(frozen=True, kw_only=True)
class Microbatches:
    """How many there are in a step, and what a pipeline stage must know of each to receive it."""

    count: int
    samples: int
    """In each."""
    packed_rows: int
    """`Tokens.packed_rows`, the same for all of a step."""


_LATE = 4
"""The gradients of a model's first weights come last, when backward has let go of most that forward kept, and lie at a
buffer's end: this part of it (one in so many) has no pages until then. A page's return takes time: 0.4 ms a MiB."""


class DataParallel:
    """A rank's part of a model, a module for each run of blocks it holds, in megatron's gradient buffers."""

    def __init__(self, modules: list[ShardedModule], mesh: Mesh, shape: Shape, dtype: torch.dtype):
        self.modules = modules
        self.mesh = mesh
        self.config = config = _transformer_config(mesh, shape, dtype)
        # A group of one sends nothing that could overlap.
        overlap = mesh.config.overlap and mesh.data_and_context.size() > 1
        buffers = DistributedDataParallelConfig(
            grad_reduce_in_fp32=True,
            overlap_grad_reduce=overlap,
            overlap_param_gather=overlap,
            use_distributed_optimizer=True,
            num_distributed_optimizer_instances=mesh.data_and_context.size() // mesh.states.size(),
            average_in_collective=False,
        )
        self.chunks = [
            # megatron's own rule: only the first run's buckets can be reduced while others still compute.
            DistributedDataParallel(config, buffers, module, disable_bucketing=number > 0)
            for number, module in enumerate(modules)
        ]
        self._linears = [layer for module in modules for layer in module.modules() if is_linear(layer)]
        for linear in self._linears:
            linear.gradient_accumulation_fusion = True  # weights have their place in a buffer now
        for buffer in (buffer for chunk in self.chunks for buffer in chunk.buffers):
            buffer.reset = partial(self._reset, buffer)
        config.finalize_model_grads_func = self._finalize
        config.no_sync_func = _one_or_all([chunk.no_sync for chunk in self.chunks])
        if buffers.overlap_grad_reduce:
            config.grad_sync_func = _one_or_all([chunk.start_grad_sync for chunk in self.chunks])
        if buffers.overlap_param_gather:
            config.param_sync_func = _one_or_all([chunk.start_param_sync for chunk in self.chunks])

    def named_parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """Of all the rank's runs of blocks; names are those of the whole model."""
        for module in self.modules:
            yield from module.named_parameters()

    def gather(self) -> None:
        """Brings every parameter up to date after an update.

        megatron's overlapped gathering does that for the next step's forward alone: whoever looks at parameters before,
        or runs a forward without zeroing the gradients first, would see those of the step before.
        """
        for chunk in self.chunks:
            chunk.start_param_sync(force_sync=True)

    def forward_backward(self, step: Step, batches: Iterable[Any], microbatches: Microbatches) -> torch.Tensor:
        """Forward and backward of a step's microbatches, gradients averaged over the data-parallel ranks.

        Returns this rank's part of the mean loss, 0-D fp32, still on the device; 0 unless it holds the last blocks.
        """
        for chunk in self.chunks:
            chunk.zero_grad_buffer()
        return self._run(step, batches, microbatches, forward_only=False)

    @torch.no_grad()
    def forward(self, step: Step, batches: Iterable[Any], microbatches: Microbatches) -> torch.Tensor:
        """As `forward_backward`, the loss alone; after `gather`, which all data-parallel ranks do together."""
        return self._run(step, batches, microbatches, forward_only=True)

    def _reset(self, buffer) -> None:
        """Zeros in a gradient buffer, but for what is written over anyway."""
        written = {id(weight) for weight in self._written_weights()}
        if not written:
            buffer.grad_data.zero_()
            return
        for parameter in buffer.params:
            if id(parameter) not in written:
                parameter.main_grad.zero_()
        clear(buffer.grad_data[-(buffer.grad_data.numel() // _LATE) :])

    def _finalize(self, *arguments, **keywords) -> None:
        finish_gradients(self._written_weights())
        finalize_model_grads(*arguments, **keywords)

    def _written_weights(self) -> Iterator[torch.nn.Parameter]:
        return (linear.weight for linear in self._linears if writes_gradient(linear))

    def _run(self, step: Step, batches, microbatches: Microbatches, *, forward_only: bool) -> torch.Tensor:
        def forward_step(iterator, model):
            output, loss = step(model, next(iterator))
            return output, lambda output: _reported(loss(output))

        iterators = _handed_out(batches, len(self.chunks))
        mesh, config = self.mesh, self.mesh.config
        reports = get_forward_backward_func()(
            forward_step_func=forward_step,
            data_iterator=_one_or_all(iterators),
            model=list(self.chunks),
            num_microbatches=microbatches.count,
            # megatron divides by the context's, and under sequence parallelism the tensor group's size.
            seq_length=microbatches.packed_rows * mesh.context.size() * (mesh.tensor.size() if config.sequence else 1),
            micro_batch_size=microbatches.samples,
            forward_only=forward_only,
        )
        if not reports:
            return torch.zeros((), device=mesh.device)
        return torch.stack([report["loss"] for report in reports]).mean()


def _handed_out(batches: Iterable[Any], runs: int) -> list[Iterator[Any]]:
    """The microbatches for each run of blocks; one is let go of as soon as every run has taken it.

    itertools.tee would hold 57 of them until it is through with all.
    """
    source, waiting = iter(batches), [deque() for _ in range(runs)]

    def of_run(mine: deque) -> Iterator[Any]:
        while True:
            if not mine:
                for batch in source:
                    for each in waiting:
                        each.append(batch)
                    del batch
                    break
                else:
                    return
            yield mine.popleft()

    return [of_run(mine) for mine in waiting]


def _reported(loss: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    # Cloned: the schedule multiplies and divides the loss in place, by the context's size and the microbatch count.
    return loss, {"loss": loss.detach().float().clone()}


def _transformer_config(mesh: Mesh, shape: Shape, dtype: torch.dtype) -> TransformerConfig:
    tensor, config = mesh.tensor.size(), mesh.config
    virtual = config.virtual_pipeline if config.virtual_pipeline > 1 else None
    return TransformerConfig(
        num_layers=shape.layers,
        hidden_size=shape.width,
        num_attention_heads=-(-shape.heads // tensor) * tensor,  # padded, as the layers are
        tensor_model_parallel_size=tensor,
        pipeline_model_parallel_size=mesh.pipeline.size(),
        virtual_pipeline_model_parallel_size=virtual,
        context_parallel_size=mesh.context.size(),
        sequence_parallel=config.sequence,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=dtype == torch.bfloat16,
        gradient_accumulation_fusion=False,
        # Interleaved at two stages, batched sends are silently wrong (docs/constraints.md).
        overlap_p2p_comm=virtual is not None,
        batch_p2p_comm=virtual is None,
    )


def _one_or_all(values: list) -> Any:
    """megatron takes a single value, or a list where there are virtual stages."""
    return values[0] if len(values) == 1 else values
