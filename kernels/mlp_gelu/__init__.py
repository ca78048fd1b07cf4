"""Bias and activation between the MLP's two linears.

    h   = hidden + bias
    out = h / 2 * (1 + tanh(sqrt(2 / pi) * (h + 0.044715 h^3)))

Source: Hendrycks and Gimpel, Gaussian Error Linear Units, arXiv 1606.08415, section 2 (the tanh form).
"""

from typing import Protocol

from torch import Tensor

from ..backend import Backend
from ..ranks import DEVICE_TYPES
from ..toolchains import native_refusal, npu_triton_refusal, triton_refusal


class MlpGelu(Protocol):
    def __call__(self, hidden_SBM: Tensor, bias_M: Tensor) -> Tensor:
        """Activated hidden features.

        Args:
            hidden_SBM: the first linear's product without its bias; M is this rank's share of the MLP width.
            bias_M: that linear's bias, in any floating dtype.

        Returns:
            out_SBM in hidden's dtype.

        fp32 inside: the biased sum is not rounded on the way. Gradients reach hidden and bias (summed over S and B in
        fp32). Saved for backward: hidden, bias.
        """
        ...


BACKENDS = (
    Backend.beside(__name__, "cpu_native", ("cpu",), native_refusal),
    Backend.beside(__name__, "gpu_triton", ("cuda",), triton_refusal),
    Backend.beside(__name__, "npu_triton", ("npu",), npu_triton_refusal),
    Backend.beside(__name__, "reference", DEVICE_TYPES),
)
