"""Weight gradients added straight to megatron's gradient buffers, without a tensor of their own in between.

megatron-core's linears can do that through an extension of apex, fused_weight_gradient_mlp_cuda. This is that
module's function for fp32 buffers on torch's own products, for any device; parallel/megatron.py puts it in its place.
"""

from torch import Tensor

from ..kernels.matrix_product.torch_blas import matrix_product


def wgrad_gemm_accum_fp32(x_NI: Tensor, d_y_NO: Tensor, main_grad_OI: Tensor) -> None:
    """main_grad += d_y^T x, in place. The name is apex's."""
    matrix_product(d_y_NO.t(), x_NI, sum_NO=main_grad_OI)
