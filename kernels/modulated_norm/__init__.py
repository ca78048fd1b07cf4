"""LayerNorm whose scale and shift come from the conditioning row: the "Ada" of AdaLN.

    out = (x - mean_D(x)) * rsqrt(variance_D(x) + epsilon) * (1 + scale) + shift       variance: biased, over D

Source: DiT, arXiv 2212.09748, section 3.2 (adaLN-Zero block).
"""

from typing import Protocol

from torch import Tensor

from ..backend import Backend
from ..ranks import DEVICE_TYPES
from ..toolchains import native_refusal, npu_triton_refusal, triton_refusal


class ModulatedNorm(Protocol):
    def __call__(self, x_SBD: Tensor, shift_BD: Tensor, scale_BD: Tensor, *, epsilon: float) -> Tensor:
        """Normalised and modulated tokens.

        Args:
            x_SBD: tokens of one stream, any strides.
            shift_BD, scale_BD: one row a sample, any strides (they are chunks of one product) and floating dtype.
            epsilon: added to the variance.

        Returns:
            out_SBD in x's dtype.

        fp32 inside. Gradients reach x, shift and scale (theirs summed over S in fp32). Saved for backward: x, scale,
        and mean and reciprocal deviation of each row.
        """
        ...


BACKENDS = (
    Backend.beside(__name__, "cpu_native", ("cpu",), native_refusal),
    Backend.beside(__name__, "gpu_triton", ("cuda",), triton_refusal),
    Backend.beside(__name__, "npu_triton", ("npu",), npu_triton_refusal),
    Backend.beside(__name__, "reference", DEVICE_TYPES),
)
