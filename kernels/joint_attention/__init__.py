"""Joint attention: every video and text token attends to every other one. Full, without mask.

    s      = scale * q k^T                      one row of J scores for each query
    lse    = logsumexp(s)                       natural logarithm
    out    = exp(s - lse) v

Sources: Stable Diffusion 3, arXiv 2403.03206, section 4 (joint attention over both streams); the log-sum-exp form and
its backward: FlashAttention-2, arXiv 2307.08691, section 3.1.

Backward, with P = exp(s - lse) and delta = sum_E(out * d_out) - d_lse:

    d_v = P^T d_out     d_s = P * (d_out v^T - delta)     d_q = scale * d_s k     d_k = scale * d_s^T q

Gradients arrive through `out` and through `lse`: ring attention joins blocks by their lse.

With a rotation, R_t the turn of video token t (the identity for text):

    q_t -> R_t q_t     k_t -> R_t k_t     before the scores;     d_q_t -> R_t^T d_q_t     d_k_t -> R_t^T d_k_t     after
"""

from typing import Protocol

from torch import Tensor

from ..backend import UP_TO_FP32, Backend
from ..ranks import DEVICE_TYPES
from ..toolchains import native_refusal, npu_refusal, npu_triton_refusal, triton_refusal
from ..vendors import LOW, flash_attn_refusal, sdpa_cudnn_refusal, sdpa_flash_refusal


class JointAttention(Protocol):
    def __call__(
        self,
        q_BHQE: Tensor,
        k_BHJE: Tensor,
        v_BHJE: Tensor,
        *,
        scale: float,
        rotation: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Attention of Q queries to J tokens.

        Args:
            q_BHQE, k_BHJE, v_BHJE: one dtype (float32, bfloat16, float16; the reference also float64), any strides.
                Q and J are any lengths from 1. Q < J when only the video tokens ask (last block) or in a ring.
            scale: factor on q.k, 1/sqrt(E) in this model.
            rotation: (cos_SR, sin_SR), float32 (or float64 for float64 inputs), R = E / 2, the same for every sample
                and head: the first S queries and the first S keys are the same video tokens, and each pair
                (i, i + R) of their values turns as in qk_norm_rope. S is at most Q and J; what comes after, the text,
                does not turn. None turns nothing.

        Returns:
            out_BHQE in the inputs' dtype; lse_BHQ in float32 (float64 for float64 inputs).

        Raises:
            ValueError: tables of another shape or dtype, or more rows than there are queries or keys.

        Scores, softmax and sums are fp32. What turns is turned in fp32 and rounded to the inputs' dtype, as
        qk_norm_rope hands it over. Gradients reach q, k and v, not the rotation. Saved for backward: q, k, v, out, lse;
        never the scores. With a rotation npu_triton saves the two tables besides, q and k as they came; the others,
        which turn them in a pass ahead, save what that pass made.
        """
        ...

    def backward(
        self,
        d_out_BHQE: Tensor,
        d_lse_BHQ: Tensor | None,
        q_BHQE: Tensor,
        k_BHJE: Tensor,
        v_BHJE: Tensor,
        out_BHQE: Tensor,
        lse_BHQ: Tensor,
        *,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The backward alone, for who keeps the tensors it needs: a ring of ranks.

        Args:
            q_BHQE, k_BHJE: as their products were taken; it turns nothing, and who rotates does so before.
            d_out_BHQE: in out's dtype, any strides. d_lse_BHQ: None if nothing used lse.
            k_BHJE, v_BHJE: all the keys and values that out and lse come from, or a part of them.
            out_BHQE, lse_BHQ: of all of them.

        Returns:
            (d_q, d_k, d_v) in the inputs' dtype: what these keys add to d_q, and the whole gradient of these.
        """
        ...


BACKENDS = (
    Backend.beside(__name__, "cpu_native", ("cpu",), native_refusal),
    Backend.beside(__name__, "gpu_triton", ("cuda",), triton_refusal),
    Backend.beside(__name__, "flash_attn", ("cuda",), flash_attn_refusal, LOW),
    Backend.beside(__name__, "sdpa_cudnn", ("cuda",), sdpa_cudnn_refusal, LOW, repeats=False),
    Backend.beside(__name__, "sdpa_flash", ("cuda",), sdpa_flash_refusal, LOW, repeats=False),
    Backend.beside(__name__, "sdpa_flash_cpu", ("cpu",)),
    Backend.beside(__name__, "npu_fused", ("npu",), npu_refusal, UP_TO_FP32),
    Backend.beside(__name__, "npu_triton", ("npu",), npu_triton_refusal),
    Backend.beside(__name__, "reference", DEVICE_TYPES),
)
