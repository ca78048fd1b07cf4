// The table of this instruction set's kernels.

#include "kernels.h"

namespace contentv::CONTENTV_INSTRUCTIONS {

const Kernels kernels = {
    joint_attention,     joint_attention_backward,     modulated_norm,      modulated_norm_backward,
    gated_residual,      gated_residual_backward,      gated_residual_norm, gated_residual_norm_backward,
};

}  // namespace contentv::CONTENTV_INSTRUCTIONS
