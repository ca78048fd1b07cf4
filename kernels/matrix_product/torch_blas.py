"""The product as torch makes it: by the library of the device's vendor, in the dtype of the factors."""

import torch
from torch import Tensor

from ..device import adds_products_in_fp32
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
    if sum_NO is None:
        return left_NI @ right_IO if bias_O is None else left_NI @ right_IO + bias_O.to(left_NI.dtype)
    if left_NI.dtype == sum_NO.dtype:
        return torch.mm(left_NI, right_IO, out=sum_NO) if is_first else sum_NO.addmm_(left_NI, right_IO)
    if is_first:
        sum_NO.zero_()
    if adds_products_in_fp32(left_NI):
        return torch.addmm(sum_NO, left_NI, right_IO, out_dtype=sum_NO.dtype, out=sum_NO)
    return sum_NO.add_(left_NI @ right_IO)  # torch has no product of 16 bits into 32 elsewhere
