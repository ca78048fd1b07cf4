"""The residual connection of an AdaLN-zero block.

    out = x + gate * update

Source: DiT, arXiv 2212.09748, section 3.2 (the gate starts at zero, so a block starts as the identity).
"""

from typing import Protocol

from torch import Tensor

from ..backend import Backend
from ..ranks import DEVICE_TYPES
from ..toolchains import native_refusal, npu_triton_refusal, triton_refusal


class GatedResidual(Protocol):
    def __call__(self, x_SBD: Tensor, gate_BD: Tensor, update_SBD: Tensor) -> Tensor:
        """Tokens plus the gated update.

        Args:
            x_SBD, update_SBD: tokens and what attention or the MLP adds, one dtype, any strides.
            gate_BD: one row a sample, any strides and floating dtype.

        Returns:
            out_SBD in x's dtype.

        fp32 inside, rounded once. Gradients reach x, gate (summed over S in fp32) and update. Saved for backward:
        gate, update.
        """
        ...


BACKENDS = (
    Backend.beside(__name__, "cpu_native", ("cpu",), native_refusal),
    Backend.beside(__name__, "gpu_triton", ("cuda",), triton_refusal),
    Backend.beside(__name__, "npu_triton", ("npu",), npu_triton_refusal),
    Backend.beside(__name__, "reference", DEVICE_TYPES),
)
