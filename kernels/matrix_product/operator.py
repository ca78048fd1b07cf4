"""matrix_product as torch.library operators: what a backend's kernel takes and fills."""

from typing import Protocol

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ..operator import define, define_in_place
from . import MatrixProduct, check


class Kernel(Protocol):
    def __call__(self, left_NI: Tensor, right_IO: Tensor, bias_O: Tensor | None, out_NO: Tensor, add: bool) -> None:
        """out is contiguous; `add`: it holds what the product is added to. The factors have any strides."""


def operator(backend: str, kernel: Kernel) -> MatrixProduct:
    """The operation by one backend's kernel."""

    def fill(left_NI, right_IO, bias_O, out_NO):
        kernel(left_NI, right_IO, bias_O, out_NO, False)

    def add(left_NI, right_IO, sum_NO, is_first):
        kernel(left_NI, right_IO, None, sum_NO, not is_first)

    multiply = define(
        f"matrix_product_{backend}", "(Tensor left, Tensor right, Tensor? bias) -> Tensor", _outputs, fill
    )
    multiply_add = define_in_place(
        f"matrix_product_{backend}_add", "(Tensor left, Tensor right, Tensor(a!) sum, bool is_first) -> ()", add
    )

    register_flop_formula([multiply.overloadpacket, multiply_add.overloadpacket])(_operations)

    @torch.no_grad()
    def matrix_product(
        left_NI: Tensor,
        right_IO: Tensor,
        bias_O: Tensor | None = None,
        sum_NO: Tensor | None = None,
        *,
        is_first: bool = False,
    ) -> Tensor:
        check(bias_O, sum_NO)
        if sum_NO is None:
            return multiply(left_NI, right_IO, bias_O)
        multiply_add(left_NI, right_IO, sum_NO, is_first)
        return sum_NO

    return matrix_product


def _outputs(left_NI, right_IO, _bias_O):
    return left_NI.new_empty(left_NI.shape[0], right_IO.shape[1])


def _operations(left_NI, right_IO, *_, **__) -> int:
    """What torch's FlopCounterMode counts for a call, from the shapes: torch's own product is in its table already."""
    return 2 * left_NI[0] * left_NI[1] * right_IO[1]
