"""The registry: one table of backends keyed by (operation, backend name), and the choice made from it once, at build.

    kernels = choose("cuda", config.kernels.wishes())
    out_BHQE, lse_BHQ = kernels.joint_attention(q_BHQE, k_BHJE, v_BHJE, scale=0.125)

A `KernelSet` is passed to constructors; nobody looks anything up later. The table is a constant made from the operation
packages named below, so it depends on no import order.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch

from . import (
    adamw,
    flow_loss,
    flow_noise,
    gated_residual,
    gated_residual_norm,
    gradient_norm,
    joint_attention,
    matrix_product,
    mlp_gelu,
    modulated_norm,
    qk_norm_rope,
)
from .backend import Backend
from .config import AUTO
from .ranks import OPERATIONS, RANKS, Ranks

Table = Mapping[tuple[str, str], Backend]

_PACKAGES = (
    matrix_product,
    joint_attention,
    qk_norm_rope,
    modulated_norm,
    gated_residual,
    gated_residual_norm,
    mlp_gelu,
    flow_noise,
    flow_loss,
    gradient_norm,
    adamw,
)


def tabulate(backends: tuple[Backend, ...]) -> Table:
    """The read-only table of these backends, keyed by (operation, backend name)."""
    table = {(backend.op, backend.name): backend for backend in backends}
    assert len(table) == len(backends), "two backends of one operation share a name"
    return MappingProxyType(table)


TABLE: Table = tabulate(tuple(backend for package in _PACKAGES for backend in package.BACKENDS))


@dataclass(frozen=True)
class Choice:
    """One row of the start-up table."""

    op: str
    backend: str
    others: tuple[tuple[str, str], ...]
    """(backend, why it was not taken) for every other backend of this operation."""

    def __str__(self) -> str:
        why = "; ".join(f"{name}: {reason}" for name, reason in self.others)
        return f"{self.op} -> {self.backend}" + (f" ({why})" if why else "")


@dataclass(frozen=True, kw_only=True)
class KernelSet:
    """One function for each operation, chosen once. What each promises stands in its package's contract."""

    matrix_product: matrix_product.MatrixProduct
    joint_attention: joint_attention.JointAttention
    qk_norm_rope: qk_norm_rope.QkNormRope
    modulated_norm: modulated_norm.ModulatedNorm
    gated_residual: gated_residual.GatedResidual
    gated_residual_norm: gated_residual_norm.GatedResidualNorm
    mlp_gelu: mlp_gelu.MlpGelu
    flow_noise: flow_noise.FlowNoise
    flow_loss: flow_loss.FlowLoss
    gradient_norm: gradient_norm.GradientNorm
    adamw: adamw.AdamW
    device: str
    """The device type the choice was made for."""
    rows: tuple[Choice, ...]

    def report(self) -> tuple[Choice, ...]:
        """Operation -> backend -> why not the others, for the start-up table."""
        return self.rows

    def product_of_its_own(self) -> matrix_product.MatrixProduct | None:
        """The product for linears that would call torch's themselves; None where that is the one chosen."""
        return None if self.choices()["matrix_product"] == "torch_blas" else self.matrix_product

    def choices(self) -> dict[str, str]:
        """Operation -> backend: goes into the resolved config and the checkpoint, and back into `choose`."""
        return {row.op: row.backend for row in self.rows}


def choose(
    device: str,
    wish: str | Mapping[str, str] = AUTO,
    *,
    dtype: torch.dtype = torch.float32,
    repeatable: bool = True,
    table: Table = TABLE,
    ranks: Ranks = RANKS,
) -> KernelSet:
    """The kernels for one device type and the dtype that the model computes in.

    Args:
        device: "cpu", "cuda" or "npu" (a torch device's type).
        wish: "auto", one backend name for every operation that has it, or operation -> backend name or "auto"
            (operations left out are "auto"). A former run's `KernelSet.choices()` asks for exactly its kernels.
        dtype: of the tokens between the operations; a backend that does not take it is refused.
        repeatable: "auto" takes only backends that give the same bits twice; a name is taken as it is.
        table, ranks: the registry's own unless a test brings others.

    Raises:
        ValueError: unknown device, operation or backend, or a backend that refuses this device, dtype or machine.
    """
    if device not in ranks:
        raise ValueError(f"there are no kernels for device {device!r}; choose one of {', '.join(ranks)}")
    wishes = _wherever_it_is(wish, table) if isinstance(wish, str) else dict(wish)
    for op in wishes:
        if op not in OPERATIONS:
            raise ValueError(
                f"a kernel is wished for {op!r}, which is no operation; choose from {', '.join(OPERATIONS)}"
            )
    functions: dict[str, Callable] = {}
    rows = []
    for op in OPERATIONS:
        backends = {name: backend for (each, name), backend in table.items() if each == op}
        refusals = {name: each.refuses(device, dtype) for name, each in backends.items()}
        wished = wishes.get(op, AUTO)
        if wished == AUTO:
            if repeatable:
                refusals = {name: reason or _unrepeatable(backends[name]) for name, reason in refusals.items()}
            backend, row = _choose_best(op, backends, refusals, device, ranks[device][op])
        else:
            backend, row = _choose_wished(op, backends, refusals, device, wished)
        functions[op] = backend.load()
        rows.append(row)
    return KernelSet(**functions, device=device, rows=tuple(rows))


def choose_like(device: str, former: Mapping[str, str], *, dtype: torch.dtype = torch.float32) -> KernelSet:
    """A former run's kernels where they can run here, `auto` for the others: to sample or judge on another machine.

    Raises ValueError for names that no machine knows.
    """
    wishes = {
        op: AUTO if (op, name) in TABLE and TABLE[op, name].refuses(device, dtype) is not None else name
        for op, name in former.items()
    }
    return choose(device, wishes, dtype=dtype)


def chosen_elsewhere(device: str, former: Mapping[str, str]) -> bool:
    """Whether a former run's kernels are those of another kind of device, where no run could have had them here."""
    chosen = [TABLE[choice] for choice in former.items() if choice in TABLE]
    return any(device not in backend.devices for backend in chosen)


def _wherever_it_is(name: str, table: Table) -> dict[str, str]:
    having = [op for op in OPERATIONS if (op, name) in table]
    return dict.fromkeys(having or OPERATIONS, name)  # a name that none has is refused as a wish for the first


def _unrepeatable(backend: Backend) -> str | None:
    return None if backend.repeats else "does not repeat its bits: kernels.repeatable False would allow it"


Backends = Mapping[str, Backend]
Refusals = Mapping[str, str | None]


def _choose_best(
    op: str, backends: Backends, refusals: Refusals, device: str, ranked: tuple[str, ...]
) -> tuple[Backend, Choice]:
    best = next((name for name in ranked if name in backends and refusals[name] is None), None)
    if best is None:
        reasons = "; ".join(f"{name}: {reason or 'has no rank'}" for name, reason in refusals.items())
        raise ValueError(f"no backend of {op} can be chosen for {device}: {reasons or 'there is none'}")
    return backends[best], _row(op, best, refusals, f"ranked below {best}")


def _choose_wished(op: str, backends: Backends, refusals: Refusals, device: str, wish: str) -> tuple[Backend, Choice]:
    if wish not in backends:
        raise ValueError(f"{op} has no backend {wish!r}; there is {', '.join(backends)}: choose one, or auto")
    if refusals[wish] is not None:
        willing = [name for name, reason in refusals.items() if reason is None]
        there = f"choose {' or '.join(willing)}, or auto" if willing else "no other backend can run here either"
        raise ValueError(f"{op} cannot use {wish} on {device}: {refusals[wish]}; {there}")
    return backends[wish], _row(op, wish, refusals, f"{wish} was wished for")


def _row(op: str, chosen: str, refusals: Refusals, otherwise: str) -> Choice:
    others = tuple((name, reason or otherwise) for name, reason in refusals.items() if name != chosen)
    return Choice(op, chosen, others)
