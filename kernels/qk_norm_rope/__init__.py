"""RMSNorm of queries and keys, head by head, then (video only) the rotation that tells tokens where they are.

    n      = x * rsqrt(mean_E(x^2) + epsilon) * gain
    out_i  = n_i cos_i - n_{i+R} sin_i          R = E / 2, i in [0, R)
    out_{i+R} = n_{i+R} cos_i + n_i sin_i

Pairs are (i, i + E/2): halves rotate, so a kernel reads two contiguous runs. The published checkpoints' interleaved
pairs are permuted when weights are loaded and saved.

Sources: RMSNorm, arXiv 1910.07467, equation 4; QK-normalisation in MM-DiT, arXiv 2403.03206, section 5.3.2; rotary
embedding, arXiv 2104.09864, equation 34.
"""

from typing import Protocol

from torch import Tensor

from ..backend import UP_TO_FP32, Backend
from ..ranks import DEVICE_TYPES
from ..toolchains import native_refusal, npu_refusal, npu_triton_refusal, triton_refusal


class QkNormRope(Protocol):
    def __call__(
        self,
        q_SBHE: Tensor,
        k_SBHE: Tensor,
        q_gain_E: Tensor,
        k_gain_E: Tensor,
        rotation: tuple[Tensor, Tensor] | None,
        *,
        epsilon: float,
    ) -> tuple[Tensor, Tensor]:
        """Normalised, rotated queries and keys of one stream.

        Args:
            q_SBHE, k_SBHE: one dtype, any strides (they are slices of one q, k, v product). S is any length, the same
                for both; text passes its T tokens here.
            q_gain_E, k_gain_E: gains, in any floating dtype.
            rotation: (cos_SR, sin_SR), float32, R = E / 2, the same for every sample and head; None rotates nothing.
            epsilon: added to the mean square. A head of zeros gives zeros.

        Returns:
            (q_SBHE, k_SBHE) in the inputs' dtype.

        fp32 inside. Gradients reach q, k and both gains (theirs summed over S, B and H in fp32), not the rotation.
        Saved for backward: q, k and one reciprocal root mean square for each row (the reference leaves it to autograd
        and saves more).
        """
        ...


BACKENDS = (
    Backend.beside(__name__, "cpu_native", ("cpu",), native_refusal),
    Backend.beside(__name__, "gpu_triton", ("cuda",), triton_refusal),
    Backend.beside(__name__, "npu_fused", ("npu",), npu_refusal, UP_TO_FP32),
    Backend.beside(__name__, "npu_triton", ("npu",), npu_triton_refusal),
    Backend.beside(__name__, "reference", DEVICE_TYPES),
)
