"""Launches of Triton kernels, and what a compiler ahead of time must know to make the very code that a launch runs.

A backend describes its work as `Launch`es and runs them. Made with tensors on the meta device, the same launches give
the `Compilation`s that a gate compiles where no GPU is: what is checked there is what runs here. Each gpu_triton.py
ends with them, and so does each npu_triton.py, for Ascend:

    COMPILED: tuple[Compilation, ...]

Imports Triton only in `Compilation.source`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .device import chosen_for

_POINTERS = {
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.int32: "*i32",
    torch.int64: "*i64",
}
_CONSTEXPR = "constexpr"
_ALIGNMENT = 16
"""Bytes of an address, and multiples of an integer, by which Triton knows that it may load 16 bytes at once."""


@dataclass(frozen=True, kw_only=True)
class Compilation:
    """One variant of one kernel."""

    kernel: Any
    """The function under @triton.jit."""
    config: str
    """What it is compiled for, in words: backward, bf16, D 2432."""
    signature: Mapping[str, str]
    """Every parameter in the kernel's order -> its type as Triton writes it: *bf16, i32, i64, fp32, constexpr."""
    constants: Mapping[str, Any]
    """The values of those that are constexpr."""
    aligned: frozenset[str]
    """Pointers to 16-byte boundaries and integers divisible by 16."""
    num_warps: int
    num_stages: int
    targets: tuple[str, ...] = ()
    """The chips it is meant for, of those in `promises`' keys; all of them if empty."""
    promises: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Target (sm_80, sm_90, sm_100, gfx942) -> instructions its machine code must hold: {"sm_90": ("HGMMA",)}."""
    unified_buffer: int = 0
    """Bytes of an Ascend core's unified buffer that its tiles take by their configuration; 0 where it states none."""

    @property
    def name(self) -> str:
        """The kernel's own name."""
        return self.kernel.__name__

    def source(self):
        """What triton.compile takes, with `options()` and a target."""
        from triton.compiler import ASTSource

        places = {name: (index,) for index, name in enumerate(self.signature)}
        return ASTSource(
            fn=self.kernel,
            signature=dict(self.signature),
            constexprs={places[name]: value for name, value in self.constants.items()},
            attrs={places[name]: [["tt.divisibility", _ALIGNMENT]] for name in self.aligned},
        )

    def options(self) -> dict[str, int]:
        return {"num_warps": self.num_warps, "num_stages": self.num_stages}


@dataclass(frozen=True, kw_only=True)
class Config:
    """How a kernel over rows and columns is cut: constants beside each kernel, chosen by sizes, never by a clock."""

    rows: int
    """Rows that a program holds at a time."""
    warps: int
    columns: int = 0
    """Columns that a program holds at a time; 0 where it holds whole rows."""
    stages: int = 1
    """Loads ahead in the loop over rows: 1 loads what it needs when it needs it."""
    programs: int = 0
    """Programs for each processor of the device, which share the rows; 0 where a program does not loop."""


@dataclass(frozen=True, kw_only=True)
class Launch:
    """One launch: a kernel, its grid and every argument by name, constexprs among them."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: Mapping[str, Any]
    num_warps: int = 4
    num_stages: int = 3
    unified_buffer: int = 0
    """For Ascend: see Compilation."""

    def run(self) -> None:
        if all(self.grid):
            self.kernel[self.grid](**self.arguments, num_warps=self.num_warps, num_stages=self.num_stages)

    def compilation(
        self, config: str, promises: Mapping[str, tuple[str, ...]] | None = None, targets: tuple[str, ...] = ()
    ) -> Compilation:
        """What Triton compiles when this launch runs. Needs the kernel compiled, not interpreted."""
        signature, constants, aligned = {}, {}, set()
        for parameter in self.kernel.params:
            name, value = parameter.name, self.arguments[parameter.name]
            kind = _CONSTEXPR if parameter.is_constexpr else _type_of(value, parameter)
            signature[name] = kind
            if kind == _CONSTEXPR:
                constants[name] = value
            elif _is_aligned(value, parameter):
                aligned.add(name)
        return Compilation(
            kernel=self.kernel, config=config, signature=signature, constants=constants, aligned=frozenset(aligned),
            num_warps=self.num_warps, num_stages=self.num_stages, targets=targets, promises=promises or {},
            unified_buffer=self.unified_buffer,
        )  # fmt: skip


def runs(launches: Callable[..., Iterable[Launch]]) -> Callable[..., None]:
    """The function that fills what these launches fill, on the device where its tensors are."""

    def fill(*arguments) -> None:
        flat = (each for argument in arguments for each in (argument if isinstance(argument, list) else (argument,)))
        with chosen_for(next(each for each in flat if isinstance(each, Tensor))):
            for launch in launches(*arguments):
                launch.run()

    return fill


KINDS = ((torch.bfloat16, torch.bfloat16), (torch.float32, torch.float32))
"""(tokens, rows of modulation, gains or biases): the dtypes that training comes with."""


def on_meta(kind: torch.dtype, *shape: int) -> Tensor:
    """A tensor without memory, to make a launch with that is only compiled."""
    return torch.empty(shape, dtype=kind, device="meta")


def compilations(config: str, launches: Iterable[Launch]) -> tuple[Compilation, ...]:
    """What Triton compiles for these launches; nothing where kernels are interpreted."""
    return tuple(launch.compilation(config) for launch in launches if hasattr(launch.kernel, "params"))


def _type_of(value: Any, parameter: Any) -> str:
    """Triton's rules: None and an integer 1 become constants, an integer has 32 bits as long as it fits."""
    if value is None:
        return _CONSTEXPR
    if isinstance(value, Tensor):
        return _POINTERS[value.dtype]
    if isinstance(value, float):
        return "fp32"
    if value == 1 and not parameter.do_not_specialize:
        return _CONSTEXPR
    if parameter.annotation_type:
        return parameter.annotation_type
    return "i32" if -(2**31) <= value < 2**31 else "i64"


def _is_aligned(value: Any, parameter: Any) -> bool:
    if parameter.do_not_specialize or parameter.do_not_specialize_on_alignment:
        return False
    if isinstance(value, Tensor):
        return value.data_ptr() % _ALIGNMENT == 0
    return isinstance(value, int) and value % _ALIGNMENT == 0
