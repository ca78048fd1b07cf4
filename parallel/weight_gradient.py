"""Weight gradients added straight to megatron's gradient buffers, without a tensor of their own in between.

megatron-core's linears can do that through an extension of apex, fused_weight_gradient_mlp_cuda. This is that
module's function for fp32 buffers on torch's own products, for any device; parallel/megatron.py puts it in its place.
"""

import torch
from torch import Tensor


def wgrad_gemm_accum_fp32(x_NI: Tensor, d_y_NO: Tensor, main_grad_OI: Tensor) -> None:
    """main_grad += d_y^T x, in place. The name is apex's."""
    if x_NI.dtype == main_grad_OI.dtype:
        main_grad_OI.addmm_(d_y_NO.t(), x_NI)
    elif x_NI.is_cuda:
        torch.addmm(main_grad_OI, d_y_NO.t(), x_NI, out_dtype=main_grad_OI.dtype, out=main_grad_OI)
    else:  # torch has no product of 16 bits into 32 on a CPU
        main_grad_OI.add_(d_y_NO.t() @ x_NI)
