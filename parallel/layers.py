"""Layers that a tensor-parallel group shares: megatron-core's column and row linears, and the module that holds them.

Matrices are allocated on whatever device is the default at construction (a `with torch.device(...)`, meta included)
and left unset: model/weights.py sets them, each rank its own piece.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from .megatron import (
    ColumnParallelLinear,
    MegatronModule,
    ModelParallelConfig,
    ModelType,
    RowParallelLinear,
    copy_to_tensor_model_parallel_region,
    set_tensor_model_parallel_attributes,
    tensor_parallel,
)
from .mesh import Mesh


class ColumnLinear(ColumnParallelLinear):
    """y = x W^T + b with the rows of W over the tensor group: [S, B, in] -> [S, B, out / tensor].

    Forward copies x to every rank (or gathers sequence shards); backward adds the ranks' input gradients.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x)[0]


class RowLinear(RowParallelLinear):
    """y = x W^T + b with the columns of W over the tensor group: [S, B, in / tensor] -> [S, B, out].

    Forward adds the ranks' products (or scatters the sum along the sequence); backward copies (or gathers).
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x)[0]


@dataclass(frozen=True)
class LayerFactory:
    """Makes every parallel layer of one model: it knows the mesh and the dtype, the model does not."""

    mesh: Mesh
    dtype: torch.dtype

    def column(self, inputs: int, outputs: int, *, on_sequence: bool = True, bias_apart: bool = False) -> ColumnLinear:
        """A column linear. `on_sequence` False: x is one row a sample, never sharded along the sequence, and y is
        gathered whole. `bias_apart`: y lacks the bias, which the caller fuses into what follows."""
        layer = ColumnLinear(
            inputs, outputs, config=self._megatron(on_sequence), init_method=_unset, bias=True,
            gather_output=not on_sequence, skip_bias_add=bias_apart, tp_group=self.mesh.tensor,
        )  # fmt: skip
        set_tensor_model_parallel_attributes(layer.weight, True, 0, 1)
        return layer

    def row(self, inputs: int, outputs: int) -> RowLinear:
        layer = RowLinear(
            inputs, outputs, config=self._megatron(True), init_method=_unset, bias=True, input_is_parallel=True,
            skip_bias_add=False, tp_group=self.mesh.tensor,
        )  # fmt: skip
        set_tensor_model_parallel_attributes(layer.weight, True, 1, 1)
        return layer

    def replicated(self, inputs: int, outputs: int) -> torch.nn.Linear:
        """A linear every rank holds whole: embeddings and the head, too small to cut."""
        return torch.nn.utils.skip_init(torch.nn.Linear, inputs, outputs, dtype=self.dtype, device=_default_device())

    def gain(self, width: int) -> "HeadGain":
        return HeadGain(width, self.mesh, self.dtype)

    def _megatron(self, on_sequence: bool) -> ModelParallelConfig:
        return ModelParallelConfig(
            tensor_model_parallel_size=self.mesh.tensor.size(),
            sequence_parallel=self.mesh.config.sequence and on_sequence,
            params_dtype=self.dtype,
            use_cpu_initialization=True,  # here: allocate on torch's default device, whichever that is
            perform_initialization=False,
            gradient_accumulation_fusion=False,
        )


class HeadGain(torch.nn.Module):
    """A gain [E] every head shares, while each rank sees only its own heads.

    Its gradient is a sum over the tensor group whenever there is one, with or without sequence parallelism; megatron
    would add it up only for names it knows, so the conjugate mapping stands here (forward: copy, backward: add).
    """

    def __init__(self, width: int, mesh: Mesh, dtype: torch.dtype):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(width, dtype=dtype))
        self._tensor_group = mesh.tensor

    def forward(self) -> torch.Tensor:
        return copy_to_tensor_model_parallel_region(self.weight, group=self._tensor_group)


class ShardedModule(MegatronModule):
    """A module whose checkpoint is made of its children's shards, and which megatron's schedules can drive."""

    model_type = ModelType.encoder_or_decoder

    def __init__(self, config):
        super().__init__(config)
        self.received: torch.Tensor | None = None

    def set_input_tensor(self, tensors: list[torch.Tensor | None]) -> None:
        """Called by the schedule: what the pipeline stage before this one sent; None on the first."""
        self.received = tensors[0]


def recompute(function: Callable, *tensors: torch.Tensor):
    """Runs `function` without keeping its activations and runs it again in backward, random state included."""
    return tensor_parallel.checkpoint(function, False, *tensors)


@dataclass(frozen=True)
class Piece:
    """Part `index` of `count` equal parts of a tensor along `dim`: what a tensor-parallel rank holds of a parameter."""

    dim: int
    index: int
    count: int

    def bounds(self, shape: tuple[int, ...]) -> tuple[slice, ...]:
        """The part as slices of a tensor of this shape."""
        size = shape[self.dim] // self.count
        assert size * self.count == shape[self.dim], f"{shape} does not split into {self.count} along {self.dim}"
        return (slice(None),) * self.dim + (slice(self.index * size, (self.index + 1) * size),)


WHOLE = Piece(dim=0, index=0, count=1)


def piece_of(parameter: torch.nn.Parameter, mesh: Mesh) -> Piece:
    """Which part of the whole parameter this rank holds; all of it where the parameter is not cut."""
    if not getattr(parameter, "tensor_model_parallel", False):
        return WHOLE
    return Piece(dim=parameter.partition_dim, index=mesh.tensor.rank(), count=mesh.tensor.size())


def _default_device() -> torch.device:
    return torch.empty(0).device


def _unset(_tensor: torch.Tensor) -> None:
    """megatron asks for an initialiser even when told not to initialise."""
