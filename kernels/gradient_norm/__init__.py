"""Squared L2 norm of this rank's gradients.

    squared = sum over all gradients of sum(g^2)

Squared, because ranks add theirs before anyone takes the root; the clip factor is then
min(1, limit / (sqrt(squared) + 1e-6)), on the device.

Source: Pascanu, Mikolov, Bengio, arXiv 1211.5063, section 3.2 (clipping by the global norm).
"""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from ..backend import Backend
from ..ranks import DEVICE_TYPES
from ..toolchains import cuda_refusal, native_refusal, npu_triton_refusal, triton_refusal


class GradientNorm(Protocol):
    def __call__(self, gradients: Sequence[Tensor]) -> Tensor:
        """Squared norm of all of them together.

        Args:
            gradients: tensors of any shapes, strides and floating dtypes, on one device; each is only read.

        Returns:
            0-D float32 on their device (on the CPU, and 0, if there are none). Infinity or NaN in, infinity or NaN out.

        Squares and sums are fp32, summed in pieces so that the error does not grow with the count; the same gradients
        give the same bits every time (no atomics). Not differentiable.
        """
        ...


BACKENDS = (
    Backend.beside(__name__, "cpu_native", ("cpu",), native_refusal),
    Backend.beside(__name__, "gpu_triton", ("cuda",), triton_refusal),
    Backend.beside(__name__, "gpu_cuda", ("cuda",), cuda_refusal),
    Backend.beside(__name__, "npu_triton", ("npu",), npu_triton_refusal),
    Backend.beside(__name__, "reference", DEVICE_TYPES),
)
