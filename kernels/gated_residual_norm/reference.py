"""Gated residual and modulated LayerNorm in plain torch: one operation after the other."""

from torch import Tensor

from ..gated_residual.reference import gated_residual
from ..modulated_norm.reference import modulated_norm


def gated_residual_norm(
    x_SBD: Tensor, gate_BD: Tensor, update_SBD: Tensor, shift_BD: Tensor, scale_BD: Tensor, *, epsilon: float
) -> tuple[Tensor, Tensor]:
    out_SBD = gated_residual(x_SBD, gate_BD, update_SBD)
    return out_SBD, modulated_norm(out_SBD, shift_BD, scale_BD, epsilon=epsilon)
