// The table of this instruction set's kernels.

#include "kernels.h"

namespace contentv::CONTENTV_INSTRUCTIONS {

const Kernels kernels = {
    matrix_product,
    joint_attention,
    joint_attention_backward,
    qk_norm_rope,
    qk_norm_rope_backward,
    modulated_norm,
    modulated_norm_backward,
    gated_residual,
    gated_residual_backward,
    gated_residual_norm,
    gated_residual_norm_backward,
    mlp_gelu,
    mlp_gelu_backward,
    flow_noise,
    flow_loss,
    flow_loss_backward,
    gradient_norm,
    adamw,
};

}  // namespace contentv::CONTENTV_INSTRUCTIONS
