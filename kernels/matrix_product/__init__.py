"""The product of two matrices, as the linears multiply tokens by weights, forward and for both gradients.

    out = left right (+ bias)            sum = sum + left right            sum = left right

Source: Lawson, Hanson, Kincaid, Krogh, Basic Linear Algebra Subprograms for Fortran Usage, ACM TOMS 5(3), 1979, and its
third level (GEMM), Dongarra et al., ACM TOMS 16(1), 1990.

torch calls the vendor's library for it (cuBLAS, MKL, oneDNN), and megatron-core's linears call torch: `torch_blas` is
that very call. Other backends stand where a processor has something the vendor's library leaves unused.
"""

from typing import Protocol

import torch
from torch import Tensor

from ..backend import Backend
from ..ranks import DEVICE_TYPES
from ..toolchains import native_refusal


class MatrixProduct(Protocol):
    def __call__(
        self,
        left_NI: Tensor,
        right_IO: Tensor,
        bias_O: Tensor | None = None,
        sum_NO: Tensor | None = None,
        *,
        is_first: bool = False,
    ) -> Tensor:
        """The product, or the sum that it was added to.

        Args:
            left_NI, right_IO: of one dtype, with any strides: a transposed view is not copied.
            bias_O: added to every row.
            sum_NO: contiguous, of left's dtype or a wider one; the product is added to it in place. Not with a bias.
            is_first: the sum begins with this product: what is in sum_NO is written over and never read.

        Returns:
            out_NO in left's dtype, or sum_NO.

        Products are summed in fp32 (fp64 for fp64) and rounded once. Not differentiable: parallel/linear.py makes both
        gradients of a linear from it.

        Raises:
            ValueError: a bias and a sum at once; a dtype that the backend does not take.
        """
        ...


def check(bias_O: Tensor | None, sum_NO: Tensor | None) -> None:
    """Raises ValueError for both at once."""
    if bias_O is not None and sum_NO is not None:
        raise ValueError("matrix_product is given a bias and a sum: add the bias to the sum, or leave one out")


def _matrix_unit_refusal() -> str | None:
    if reason := native_refusal():
        return reason
    from ..native import matrix_unit_refusal  # loads the library

    return matrix_unit_refusal()


BACKENDS = (
    Backend.beside(__name__, "cpu_amx", ("cpu",), _matrix_unit_refusal, dtypes=(torch.float32,)),
    Backend.beside(__name__, "torch_blas", DEVICE_TYPES),
    Backend.beside(__name__, "cpu_native", ("cpu",), native_refusal),
    Backend.beside(__name__, "reference", DEVICE_TYPES),
)
