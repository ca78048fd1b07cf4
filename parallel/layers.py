"""Layers that a tensor-parallel group shares: megatron-core's column and row linears, and the module that holds them.

Matrices are allocated on whatever device is the default at construction (a `with torch.device(...)`, meta included)
and left unset: model/weights.py sets them, each rank its own piece.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.utils.checkpoint import checkpoint

from ..kernels.joint_attention import JointAttention
from ..kernels.matrix_product import MatrixProduct
from .attention import ContextAttention
from .linear import linear
from .megatron import (
    ColumnParallelLinear,
    LocalNonpersistentObject,
    MegatronModule,
    ModelParallelConfig,
    ModelType,
    RowParallelLinear,
    ShardedTensor,
    ShardedTensorFactory,
    all_gather_last_dim_from_tensor_parallel_region,
    copy_to_tensor_model_parallel_region,
    gather_from_tensor_model_parallel_region,
    set_tensor_model_parallel_attributes,
    tensor_parallel,
)
from .mesh import Mesh


class ColumnLinear(ColumnParallelLinear):
    """y = x W^T + b with the rows of W over the tensor group: [S, B, in] -> [S, B, out / tensor].

    Forward copies x to every rank (or gathers sequence shards); backward adds the ranks' input gradients.
    """

    product: MatrixProduct | None = None
    """Instead of torch's, which megatron calls."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x)[0]

    def _forward_impl(self, *arguments, **keywords):
        return _multiply(self, super()._forward_impl, arguments, keywords)

    def sharded_state_dict(self, prefix: str = "", sharded_offsets: tuple = (), metadata: dict | None = None) -> dict:
        return _whole_units(super().sharded_state_dict(prefix, sharded_offsets, metadata), self, prefix)


class RowLinear(RowParallelLinear):
    """y = x W^T + b with the columns of W over the tensor group: [S, B, in / tensor] -> [S, B, out].

    Forward adds the ranks' products (or scatters the sum along the sequence); backward copies (or gathers).
    """

    product: MatrixProduct | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x)[0]

    def _forward_impl(self, *arguments, **keywords):
        return _multiply(self, super()._forward_impl, arguments, keywords)

    def sharded_state_dict(self, prefix: str = "", sharded_offsets: tuple = (), metadata: dict | None = None) -> dict:
        return _whole_units(super().sharded_state_dict(prefix, sharded_offsets, metadata), self, prefix)


def _multiply(layer: ColumnParallelLinear | RowParallelLinear, megatrons: Callable, arguments: tuple, keywords: dict):
    """What megatron's linears do between their messages: by our kernel where it would send none meanwhile."""
    fused = keywords["gradient_accumulation_fusion"]
    if fused and torch.compiler.is_compiling():
        # Nor could megatron's hook add the gradient instead: the buffer is not cleared for it.
        raise RuntimeError("torch.compile cannot trace a backward that writes into a buffer: `leave_buffers` first")
    if layer.product and not keywords["allreduce_dgrad"] and not keywords["sequence_parallel"]:
        return linear(keywords["input"], keywords["weight"], keywords["bias"], layer.product, fused=fused)
    # megatron leaves the group out where nothing is sent, then warns: a warning cannot be traced.
    return megatrons(*arguments, **keywords | {"tp_group": layer.tp_group})


def writes_gradient(layer: ColumnParallelLinear | RowParallelLinear) -> bool:
    """Whether the weight's gradient comes from `linear` alone, which writes a step's first one over what is there."""
    sends = isinstance(layer, ColumnParallelLinear) and (layer.allreduce_dgrad or layer.sequence_parallel)
    return layer.gradient_accumulation_fusion and layer.product is not None and not sends


def leave_buffers(module: torch.nn.Module) -> None:
    """From now on its linears hand weight gradients to autograd, and megatron's hooks add them to the buffers."""
    for layer in filter(is_linear, module.modules()):
        layer.gradient_accumulation_fusion = False


def is_linear(module: torch.nn.Module) -> bool:
    """Whether it is one of megatron's linears, whatever it shares."""
    return isinstance(module, (ColumnParallelLinear, RowParallelLinear))


class SampleLinear(ColumnLinear):
    """A column linear for one row a sample, gathered whole: [B, in] -> [B, out].

    Every tensor rank uses the result for the tokens it holds. With sequence parallelism those differ, so the backward
    adds up the ranks' gradients and scatters them; without, they are the same, and each rank takes its part.
    """

    is_used_by_parts = False

    def forward(self, x_BI: torch.Tensor) -> torch.Tensor:
        gather = all_gather_last_dim_from_tensor_parallel_region if self.is_used_by_parts else (
            gather_from_tensor_model_parallel_region
        )  # fmt: skip
        return gather(super().forward(x_BI), group=self.tp_group)


@dataclass(frozen=True)
class LayerFactory:
    """Makes every parallel layer of one model: it knows the mesh and the dtype, the model does not."""

    mesh: Mesh
    dtype: torch.dtype
    product: MatrixProduct | None = None
    """Multiplies where megatron's linears would call torch's; None leaves it to them."""

    def column(self, inputs: int, outputs: int, *, heads: int = 0, bias_apart: bool = False) -> ColumnLinear:
        """A column linear. `heads`: the rows are so many equal units that ranks hold whole; where they do not divide,
        the last ranks hold units of zeros that stay zero. `bias_apart`: y lacks the bias, which the caller fuses into
        what follows."""
        return self._column(ColumnLinear, inputs, outputs, heads, on_sequence=True, bias_apart=bias_apart)

    def sample(self, inputs: int, outputs: int) -> SampleLinear:
        """A linear whose input is one row a sample, never sharded along the sequence."""
        layer = self._column(SampleLinear, inputs, outputs, 0, on_sequence=False, bias_apart=False)
        layer.is_used_by_parts = self.mesh.config.sequence
        return layer

    def row(self, inputs: int, outputs: int, *, heads: int = 0) -> RowLinear:
        """A row linear; `heads` as in `column`, of the columns here."""
        layer = RowLinear(
            self._padded(inputs, heads), outputs, config=self._megatron(True), init_method=_unset, bias=True,
            input_is_parallel=True, skip_bias_add=False, tp_group=self.mesh.tensor,
        )  # fmt: skip
        set_tensor_model_parallel_attributes(layer.weight, True, 1, 1)
        layer.weight.units = heads
        layer.product = self.product
        return layer

    def replicated(self, inputs: int, outputs: int, *, on_sequence: bool = True) -> "ReplicatedLinear":
        """A linear every rank holds whole, too small to cut. `on_sequence` False: x is one row a sample."""
        layer = ReplicatedLinear(inputs, outputs, dtype=self.dtype)
        for parameter in layer.parameters():
            # Tensor ranks see different tokens: megatron adds up the gradients of what is marked so.
            parameter.sequence_parallel = self.mesh.config.sequence and on_sequence
        return layer

    def gain(self, width: int) -> "HeadGain":
        return HeadGain(width, self.mesh, self.dtype)

    def attention(self, kernel: JointAttention) -> ContextAttention:
        return ContextAttention(self.mesh, kernel)

    def _column(self, kind: type[ColumnLinear], inputs: int, outputs: int, heads: int, *, on_sequence: bool,
                bias_apart: bool) -> ColumnLinear:  # fmt: skip
        layer = kind(
            inputs, self._padded(outputs, heads), config=self._megatron(on_sequence), init_method=_unset, bias=True,
            gather_output=False, skip_bias_add=bias_apart, tp_group=self.mesh.tensor,
        )  # fmt: skip
        set_tensor_model_parallel_attributes(layer.weight, True, 0, 1)
        layer.weight.units = layer.bias.units = heads
        layer.product = self.product
        return layer

    def _padded(self, size: int, units: int) -> int:
        ranks = self.mesh.tensor.size()
        return size if not units else size // units * -(-units // ranks) * ranks

    def _megatron(self, on_sequence: bool) -> ModelParallelConfig:
        return ModelParallelConfig(
            tensor_model_parallel_size=self.mesh.tensor.size(),
            sequence_parallel=self.mesh.config.sequence and on_sequence,
            params_dtype=self.dtype,
            use_cpu_initialization=True,  # here: allocate on torch's default device, whichever that is
            perform_initialization=False,
            gradient_accumulation_fusion=False,
        )


class ReplicatedLinear(torch.nn.Linear):
    """A linear every rank holds whole. Left unset, as the others are."""

    def reset_parameters(self) -> None:
        """torch would draw initial values here."""


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
    # finalize_model_grads looks for both on pipelines, to learn that no weight is tied across stages.
    share_embeddings_and_output_weights = False
    pre_process = True

    def __init__(self, config):
        super().__init__(config)
        self.received: torch.Tensor | None = None

    def sharded_state_dict(self, prefix: str = "", sharded_offsets: tuple = (), metadata: dict | None = None) -> dict:
        """megatron's own, which takes whatever a container of torch's holds for replicated, but for containers."""
        entries = super().sharded_state_dict(prefix, sharded_offsets, metadata)
        for name, child in self.named_children():
            if isinstance(child, torch.nn.ModuleDict):
                for key, module in child.items():
                    entries |= module.sharded_state_dict(f"{prefix}{name}.{key}.", sharded_offsets, metadata)
        return entries

    def set_input_tensor(self, tensors: list[torch.Tensor | None] | torch.Tensor | None) -> None:
        """Called by the schedule: what the pipeline stage before this one sent; None on the first."""
        self.received = tensors[0] if isinstance(tensors, list) else tensors


def recompute(function: Callable, *tensors: torch.Tensor):
    """Runs `function` without keeping its activations and runs it again in backward, random state included."""
    if torch.compiler.is_compiling():  # it knows torch's way, and cannot follow megatron's
        return checkpoint(function, *tensors, use_reentrant=False)
    return tensor_parallel.checkpoint(function, False, *tensors)


@dataclass(frozen=True)
class Piece:
    """Units [begin, end) of the `count` equal ones that a tensor has along `dim`: a tensor-parallel rank's part.

    Heads that do not divide over the ranks leave the last ones fewer, or none; their parameters end in zeros.
    """

    dim: int
    begin: int
    end: int
    count: int

    def bounds(self, shape: tuple[int, ...]) -> tuple[slice, ...]:
        """The part as slices of a tensor of this shape."""
        size = shape[self.dim] // self.count
        assert size * self.count == shape[self.dim], f"{shape} does not split into {self.count} along {self.dim}"
        return (slice(None),) * self.dim + (slice(self.begin * size, self.end * size),)


WHOLE = Piece(dim=0, begin=0, end=1, count=1)


def piece_of(parameter: torch.nn.Parameter, mesh: Mesh) -> Piece:
    """Which part of the whole parameter this rank holds; all of it where the parameter is not cut."""
    if not getattr(parameter, "tensor_model_parallel", False):
        return WHOLE
    rank, ranks = mesh.tensor.rank(), mesh.tensor.size()
    units = getattr(parameter, "units", 0) or ranks
    each = -(-units // ranks)
    return Piece(dim=parameter.partition_dim, begin=min(rank * each, units), end=min((rank + 1) * each, units),
                 count=units)  # fmt: skip


def padded(tensor: torch.Tensor, parameter: torch.nn.Parameter) -> torch.Tensor:
    """A rank's piece with the zeros that fill the parameter up to its shape."""
    if tensor.shape == parameter.shape:
        return tensor
    whole = tensor.new_zeros(parameter.shape)
    whole[tuple(slice(size) for size in tensor.shape)] = tensor
    return whole


def _whole_units(entries: dict, layer: ColumnLinear | RowLinear, prefix: str) -> dict:
    """A checkpoint's entries without the units of zeros, so that it is the same in every layout.

    megatron looks optimizer states up by the whole parameter, so what is cut is left to a factory.
    """
    ranks = layer.tp_group.size()
    for name, parameter in layer.named_parameters():
        units, entry = getattr(parameter, "units", 0), entries[prefix + name]
        if not isinstance(entry, ShardedTensor) or not units or units % ranks == 0:
            continue
        entries[prefix + name] = _factory(entry, parameter.partition_dim, units, layer.tp_group.rank(), ranks)
    return entries


def _factory(entry: ShardedTensor, dim: int, units: int, rank: int, ranks: int) -> ShardedTensorFactory:
    each = -(-units // ranks)
    real = max(0, min(each, units - rank * each))
    shape = entry.data.shape
    unit = shape[dim] // each

    def with_size(size: int) -> tuple[int, ...]:
        return (*shape[:dim], size, *shape[dim + 1 :])

    def build(key: str, tensor: torch.Tensor, replica, _flattened_range) -> dict:
        """One entry for each unit this rank has, since a box must be a whole multiple of its offset's step; and last
        the zeros, which stay here: a rank without a unit would have no entry, which megatron forgets on its way."""
        pieces = {
            number: ShardedTensor(
                key=key,
                data=tensor.narrow(dim, number * unit, unit).detach(),
                dtype=tensor.dtype,
                local_shape=with_size(unit),
                global_shape=with_size(unit * units),
                global_offset=tuple((rank * each + number) * unit if axis == dim else 0 for axis in range(len(shape))),
                axis_fragmentations=tuple(units if axis == dim else 1 for axis in range(len(shape))),
                replica_id=replica,
            )
            for number in range(real)
        }
        return {**pieces, real: LocalNonpersistentObject(tensor.new_zeros(with_size((each - real) * unit)))}

    return ShardedTensorFactory(
        key=entry.key,
        data=entry.data,
        build_fn=build,
        merge_fn=lambda pieces: torch.cat([pieces[number] for number in sorted(pieces)], dim=dim),
        replica_id=entry.replica_id,
    )


def _unset(_tensor: torch.Tensor) -> None:
    """megatron asks for an initialiser even when told not to initialise."""
