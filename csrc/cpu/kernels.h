// The kernels of one instruction set, as the binding calls them. What each computes stands in kernels/<op>/__init__.py,
// what it is given in kernels/<op>/operator.py.
#pragma once

#include "array.h"

namespace contentv {

struct AttentionGradients {
  Array d_out, d_lse, q, k, v, out, lse, d_q, d_k, d_v;
};

struct NormRopeInputs {
  Array q, k, q_gain, k_gain, cos, sin;
};

struct NormRopeOutputs {
  Array q, k, q_reciprocal, k_reciprocal;
};

struct NormRopeGradients {
  Array d_q_out, d_k_out, q_reciprocal, k_reciprocal, d_q, d_k, d_q_gain, d_k_gain;
};

struct ResidualNormGradients {
  Array d_out, d_normed, out, gate, update, scale, mean, reciprocal, d_x, d_gate, d_update, d_shift, d_scale;
};

struct AdamWState {
  Arrays masters, gradients, moments1, moments2, emas, copies;
};

struct AdamWNumbers {
  double lr, beta1, beta2, epsilon, weight_decay;
  int64_t step;
  double ema_decay;
};

using JointAttention = void(
    const Array& q, const Array& k, const Array& v, double scale, const Array& out, const Array& lse);
using JointAttentionBackward = void(const AttentionGradients& given, double scale);
using QkNormRope = void(const NormRopeInputs& inputs, double epsilon, const NormRopeOutputs& outputs);
using QkNormRopeBackward = void(const NormRopeInputs& inputs, const NormRopeGradients& given);
using ModulatedNorm = void(
    const Array& x, const Array& shift, const Array& scale, double epsilon, const Array& out, const Array& mean,
    const Array& reciprocal);
using ModulatedNormBackward = void(
    const Array& d_out, const Array& x, const Array& scale, const Array& mean, const Array& reciprocal,
    const Array& d_x, const Array& d_shift, const Array& d_scale);
using GatedResidual = void(const Array& x, const Array& gate, const Array& update, const Array& out);
using GatedResidualBackward = void(
    const Array& d_out, const Array& gate, const Array& update, const Array& d_gate, const Array& d_update);
using GatedResidualNorm = void(
    const Array& x, const Array& gate, const Array& update, const Array& shift, const Array& scale, double epsilon,
    const Array& out, const Array& normed, const Array& mean, const Array& reciprocal);
using GatedResidualNormBackward = void(const ResidualNormGradients& given);
using MlpGelu = void(const Array& hidden, const Array& bias, const Array& out);
using MlpGeluBackward = void(
    const Array& d_out, const Array& hidden, const Array& bias, const Array& d_hidden, const Array& d_bias);
using FlowNoise = void(
    const Array& x0, const Array& sigma, const Array& sample, int64_t step, int64_t seed_low, int64_t seed_high,
    const Array& x_t, const Array& noise);
using FlowLoss = void(
    const Array& velocity, const Array& x0, const Array& noise, const Array& weight, int64_t first_token,
    const Array& loss);
using FlowLossBackward = void(
    const Array& d_loss, const Array& velocity, const Array& x0, const Array& noise, const Array& weight,
    int64_t first_token, const Array& d_velocity);
using MatrixProduct = void(const Array& left, const Array& right, const Array& bias, const Array& out, bool add);
using GradientNorm = void(const Arrays& gradients, const Array& squared);
using AdamW = void(const AdamWState& state, const Array& clip_factor, const AdamWNumbers& numbers);

struct Kernels {
  MatrixProduct* matrix_product;
  JointAttention* joint_attention;
  JointAttentionBackward* joint_attention_backward;
  QkNormRope* qk_norm_rope;
  QkNormRopeBackward* qk_norm_rope_backward;
  ModulatedNorm* modulated_norm;
  ModulatedNormBackward* modulated_norm_backward;
  GatedResidual* gated_residual;
  GatedResidualBackward* gated_residual_backward;
  GatedResidualNorm* gated_residual_norm;
  GatedResidualNormBackward* gated_residual_norm_backward;
  MlpGelu* mlp_gelu;
  MlpGeluBackward* mlp_gelu_backward;
  FlowNoise* flow_noise;
  FlowLoss* flow_loss;
  FlowLossBackward* flow_loss_backward;
  GradientNorm* gradient_norm;
  AdamW* adamw;
};

namespace baseline {
extern const Kernels kernels;
}
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}
/// What the matrix unit of some processors is for; no set of all kernels.
namespace amx {
MatrixProduct matrix_product;
/// Why this process cannot use it; nullptr if it can.
const char* refusal();
}  // namespace amx

#ifdef CONTENTV_INSTRUCTIONS
namespace CONTENTV_INSTRUCTIONS {
MatrixProduct matrix_product;
JointAttention joint_attention;
JointAttentionBackward joint_attention_backward;
QkNormRope qk_norm_rope;
QkNormRopeBackward qk_norm_rope_backward;
ModulatedNorm modulated_norm;
ModulatedNormBackward modulated_norm_backward;
GatedResidual gated_residual;
GatedResidualBackward gated_residual_backward;
GatedResidualNorm gated_residual_norm;
GatedResidualNormBackward gated_residual_norm_backward;
MlpGelu mlp_gelu;
MlpGeluBackward mlp_gelu_backward;
FlowNoise flow_noise;
FlowLoss flow_loss;
FlowLossBackward flow_loss_backward;
GradientNorm gradient_norm;
AdamW adamw;
}  // namespace CONTENTV_INSTRUCTIONS
#endif

}  // namespace contentv
