"""`gated_residual` and the `modulated_norm` that follows it, in one pass over the tokens.

    out    = x + gate * update
    normed = (out - mean_D(out)) * rsqrt(variance_D(out) + epsilon) * (1 + scale) + shift    variance: biased, over D

Forward reads two and writes two tensors of tokens, where the two operations apart read three and write two; backward
adds the gradient through the norm to the one that passes it by, which autograd would do in a pass of its own.

Source: DiT, arXiv 2212.09748, section 3.2 (adaLN-Zero block), the residual of the attention and the MLP's norm.
"""

from typing import Protocol

from torch import Tensor

from ..backend import Backend
from ..ranks import DEVICE_TYPES
from ..toolchains import native_refusal, npu_triton_refusal, triton_refusal


class GatedResidualNorm(Protocol):
    def __call__(
        self, x_SBD: Tensor, gate_BD: Tensor, update_SBD: Tensor, shift_BD: Tensor, scale_BD: Tensor, *, epsilon: float
    ) -> tuple[Tensor, Tensor]:
        """Tokens plus the gated update, and the same normalised and modulated.

        Args:
            x_SBD, update_SBD: tokens and what attention adds, one dtype, any strides.
            gate_BD, shift_BD, scale_BD: one row a sample, any strides and floating dtype, one for all three.
            epsilon: added to the variance.

        Returns:
            (out_SBD, normed_SBD) in x's dtype. The norm sees out as it is returned, rounded.

        fp32 inside. Gradients reach x, gate, update, shift and scale (the rows' summed over S in fp32). Saved for
        backward: out, gate, update, scale, and mean and reciprocal deviation of each row.
        """
        ...


BACKENDS = (
    Backend.beside(__name__, "cpu_native", ("cpu",), native_refusal),
    Backend.beside(__name__, "gpu_triton", ("cuda",), triton_refusal),
    Backend.beside(__name__, "npu_triton", ("npu",), npu_triton_refusal),
    Backend.beside(__name__, "reference", DEVICE_TYPES),
)
