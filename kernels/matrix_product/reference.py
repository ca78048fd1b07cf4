"""The product in plain torch, in fp32 whatever the factors are."""

import torch
from torch import Tensor

from ..precision import working_dtype
from . import check


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
    working = working_dtype(left_NI.dtype)
    product = left_NI.to(working) @ right_IO.to(working)
    if sum_NO is not None:
        return sum_NO.copy_(product if is_first else sum_NO + product)
    if bias_O is not None:
        product = product + bias_O.to(working)
    return product.to(left_NI.dtype)
