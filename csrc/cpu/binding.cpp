// The kernels as operators of torch, through its stable ABI: one library for every torch since 2.11.
//
// Outputs come allocated (kernels/operator.py), so an operator only reads and fills. Its instruction set is the best the
// processor has, or the one asked for; its threads are torch's own, as many as torch.get_num_threads() says.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <atomic>
#include <cstdlib>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels.h"

namespace contentv {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// --- Instruction sets ------------------------------------------------------------------------------------------------

struct InstructionSet {
  const char* name;
  const Kernels* kernels;
  bool runs_here;
};

std::vector<InstructionSet> instruction_sets() {
  std::vector<InstructionSet> sets;
#ifdef CONTENTV_X86
  sets.push_back({"avx512", &avx512::kernels,
                  __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")});
  sets.push_back({"avx2", &avx2::kernels, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")});
#endif
  sets.push_back({"baseline", &baseline::kernels, true});
  return sets;
}

/// The set of that name, or the best one that runs here if the name is empty.
InstructionSet find_set(const std::string& name) {
  std::string names;
  for (const InstructionSet& set : instruction_sets()) {
    if (!set.runs_here) continue;
    if (name.empty() || name == set.name) return set;
    names += (names.empty() ? "" : ", ") + std::string(set.name);
  }
  throw std::invalid_argument("CONTENTV_CPU_INSTRUCTIONS is " + name + "; this processor and build have " + names +
                              ": choose one, or leave it unset for the first");
}

InstructionSet& chosen_set() {
  static InstructionSet set = [] {
    const char* wish = std::getenv("CONTENTV_CPU_INSTRUCTIONS");
    return find_set(wish ? wish : "");
  }();
  return set;
}

const Kernels& kernels() { return *chosen_set().kernels; }

// --- Tensors ---------------------------------------------------------------------------------------------------------

Type type_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return Type::float32;
    case ScalarType::Double: return Type::float64;
    case ScalarType::BFloat16: return Type::bfloat16;
    case ScalarType::Half: return Type::float16;
    case ScalarType::Long: return Type::int64;
    default:
      throw std::invalid_argument("a tensor is of a dtype that csrc/cpu does not take; it takes float32, bfloat16, "
                                  "float16 and float64: cast it");
  }
}

Array array_of(const Tensor& tensor) {
  return {tensor.data_ptr(), type_of(tensor), tensor.sizes().data(), tensor.strides().data(), tensor.dim()};
}

Array array_of(const std::optional<Tensor>& tensor) { return tensor ? array_of(*tensor) : Array(); }

std::vector<Array> arrays_of(const std::vector<Tensor>& tensors) {
  std::vector<Array> arrays;
  arrays.reserve(tensors.size());
  for (const Tensor& tensor : tensors) arrays.push_back(array_of(tensor));
  return arrays;
}

Arrays all(const std::vector<Array>& arrays) { return {arrays.data(), static_cast<int64_t>(arrays.size())}; }

// --- Operators -------------------------------------------------------------------------------------------------------

/// The set's name, after changing to another if one is named: for tests, which run them all.
std::string instructions(std::string name) {
  if (!name.empty()) chosen_set() = find_set(name);
  return chosen_set().name;
}

/// Why products cannot be left to the matrix unit; empty if they can.
std::string matrix_unit_refusal() {
#ifdef CONTENTV_AMX
  const char* reason = amx::refusal();
  return reason ? reason : "";
#else
  return "csrc/cpu was built without it: for x86-64, by a compiler that knows AMX";
#endif
}

void matrix_product(Tensor left, Tensor right, std::optional<Tensor> bias, Tensor out, bool add) {
  kernels().matrix_product(array_of(left), array_of(right), array_of(bias), array_of(out), add);
}

void matrix_product_amx(Tensor left, Tensor right, std::optional<Tensor> bias, Tensor out, bool add) {
  if (const std::string reason = matrix_unit_refusal(); !reason.empty()) throw std::invalid_argument(reason);
#ifdef CONTENTV_AMX
  amx::matrix_product(array_of(left), array_of(right), array_of(bias), array_of(out), add);
#endif
}

void joint_attention(Tensor q, Tensor k, Tensor v, double scale, Tensor out, Tensor lse) {
  kernels().joint_attention(array_of(q), array_of(k), array_of(v), scale, array_of(out), array_of(lse));
}

void joint_attention_backward(
    Tensor d_out, std::optional<Tensor> d_lse, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, double scale,
    Tensor d_q, Tensor d_k, Tensor d_v) {
  kernels().joint_attention_backward({array_of(d_out), array_of(d_lse), array_of(q), array_of(k), array_of(v),
                                      array_of(out), array_of(lse), array_of(d_q), array_of(d_k), array_of(d_v)},
                                     scale);
}

void qk_norm_rope(
    Tensor q, Tensor k, Tensor q_gain, Tensor k_gain, std::optional<Tensor> cos, std::optional<Tensor> sin,
    double epsilon, Tensor q_out, Tensor k_out, Tensor q_reciprocal, Tensor k_reciprocal) {
  kernels().qk_norm_rope(
      {array_of(q), array_of(k), array_of(q_gain), array_of(k_gain), array_of(cos), array_of(sin)}, epsilon,
      {array_of(q_out), array_of(k_out), array_of(q_reciprocal), array_of(k_reciprocal)});
}

void qk_norm_rope_backward(
    Tensor d_q_out, Tensor d_k_out, Tensor q, Tensor k, Tensor q_gain, Tensor k_gain, std::optional<Tensor> cos,
    std::optional<Tensor> sin, Tensor q_reciprocal, Tensor k_reciprocal, Tensor d_q, Tensor d_k, Tensor d_q_gain,
    Tensor d_k_gain) {
  kernels().qk_norm_rope_backward(
      {array_of(q), array_of(k), array_of(q_gain), array_of(k_gain), array_of(cos), array_of(sin)},
      {array_of(d_q_out), array_of(d_k_out), array_of(q_reciprocal), array_of(k_reciprocal), array_of(d_q),
       array_of(d_k), array_of(d_q_gain), array_of(d_k_gain)});
}

void modulated_norm(
    Tensor x, Tensor shift, Tensor scale, double epsilon, Tensor out, Tensor mean, Tensor reciprocal) {
  kernels().modulated_norm(array_of(x), array_of(shift), array_of(scale), epsilon, array_of(out), array_of(mean),
                           array_of(reciprocal));
}

void modulated_norm_backward(
    Tensor d_out, Tensor x, Tensor scale, Tensor mean, Tensor reciprocal, Tensor d_x, Tensor d_shift, Tensor d_scale) {
  kernels().modulated_norm_backward(array_of(d_out), array_of(x), array_of(scale), array_of(mean),
                                    array_of(reciprocal), array_of(d_x), array_of(d_shift), array_of(d_scale));
}

void gated_residual(Tensor x, Tensor gate, Tensor update, Tensor out) {
  kernels().gated_residual(array_of(x), array_of(gate), array_of(update), array_of(out));
}

void gated_residual_backward(Tensor d_out, Tensor gate, Tensor update, Tensor d_gate, Tensor d_update) {
  kernels().gated_residual_backward(array_of(d_out), array_of(gate), array_of(update), array_of(d_gate),
                                    array_of(d_update));
}

void gated_residual_norm(
    Tensor x, Tensor gate, Tensor update, Tensor shift, Tensor scale, double epsilon, Tensor out, Tensor normed,
    Tensor mean, Tensor reciprocal) {
  kernels().gated_residual_norm(array_of(x), array_of(gate), array_of(update), array_of(shift), array_of(scale),
                                epsilon, array_of(out), array_of(normed), array_of(mean), array_of(reciprocal));
}

void gated_residual_norm_backward(
    std::optional<Tensor> d_out, Tensor d_normed, Tensor out, Tensor gate, Tensor update, Tensor scale, Tensor mean,
    Tensor reciprocal, Tensor d_x, Tensor d_gate, Tensor d_update, Tensor d_shift, Tensor d_scale) {
  kernels().gated_residual_norm_backward({array_of(d_out), array_of(d_normed), array_of(out), array_of(gate),
                                          array_of(update), array_of(scale), array_of(mean), array_of(reciprocal),
                                          array_of(d_x), array_of(d_gate), array_of(d_update), array_of(d_shift),
                                          array_of(d_scale)});
}

void mlp_gelu(Tensor hidden, Tensor bias, Tensor out) {
  kernels().mlp_gelu(array_of(hidden), array_of(bias), array_of(out));
}

void mlp_gelu_backward(Tensor d_out, Tensor hidden, Tensor bias, Tensor d_hidden, Tensor d_bias) {
  kernels().mlp_gelu_backward(array_of(d_out), array_of(hidden), array_of(bias), array_of(d_hidden),
                              array_of(d_bias));
}

void flow_noise(
    Tensor x0, Tensor sigma, Tensor sample, int64_t step, int64_t seed_low, int64_t seed_high, Tensor x_t,
    Tensor noise) {
  kernels().flow_noise(array_of(x0), array_of(sigma), array_of(sample), step, seed_low, seed_high, array_of(x_t),
                       array_of(noise));
}

void flow_loss(Tensor velocity, Tensor x0, Tensor noise, Tensor weight, int64_t first_token, Tensor loss) {
  kernels().flow_loss(array_of(velocity), array_of(x0), array_of(noise), array_of(weight), first_token,
                      array_of(loss));
}

void flow_loss_backward(
    Tensor d_loss, Tensor velocity, Tensor x0, Tensor noise, Tensor weight, int64_t first_token, Tensor d_velocity) {
  kernels().flow_loss_backward(array_of(d_loss), array_of(velocity), array_of(x0), array_of(noise), array_of(weight),
                               first_token, array_of(d_velocity));
}

void gradient_norm(std::vector<Tensor> gradients, Tensor squared) {
  const std::vector<Array> arrays = arrays_of(gradients);
  kernels().gradient_norm(all(arrays), array_of(squared));
}

void adamw(
    std::vector<Tensor> masters, std::vector<Tensor> gradients, std::vector<Tensor> moments1,
    std::vector<Tensor> moments2, std::vector<Tensor> emas, std::vector<Tensor> copies, Tensor clip_factor, double lr,
    double beta1, double beta2, double epsilon, double weight_decay, int64_t step, double ema_decay) {
  const std::vector<Array> lists[] = {arrays_of(masters),  arrays_of(gradients), arrays_of(moments1),
                                      arrays_of(moments2), arrays_of(emas),      arrays_of(copies)};
  kernels().adamw({all(lists[0]), all(lists[1]), all(lists[2]), all(lists[3]), all(lists[4]), all(lists[5])},
                  array_of(clip_factor), {lr, beta1, beta2, epsilon, weight_decay, step, ema_decay});
}

}  // namespace

// --- Threads ---------------------------------------------------------------------------------------------------------

int64_t thread_count() { return torch::stable::get_num_threads(); }

void run_tasks(int64_t tasks, int64_t bytes, void (*task)(void*, int64_t, void*), void* context) {
  if (tasks <= 0) return;
  std::atomic<int64_t> next{0};
  const int64_t threads = thread_count();
  const int64_t workers = threads < tasks ? threads : tasks;
  torch::stable::parallel_for(0, workers, 1, [&](int64_t, int64_t) {
    const size_t size = static_cast<size_t>(bytes + 63) / 64 * 64;
    void* scratch = size ? std::aligned_alloc(64, size) : nullptr;
    if (size && !scratch) throw std::bad_alloc();
    for (int64_t index; (index = next.fetch_add(1)) < tasks;) task(context, index, scratch);
    std::free(scratch);
  });
}

}  // namespace contentv

STABLE_TORCH_LIBRARY(contentv_native, library) {
  library.def("instructions(str name) -> str");
  library.def("matrix_unit_refusal() -> str");
  library.def("matrix_product(Tensor left, Tensor right, Tensor? bias, Tensor(a!) out, bool add) -> ()");
  library.def("matrix_product_amx(Tensor left, Tensor right, Tensor? bias, Tensor(a!) out, bool add) -> ()");
  library.def("joint_attention(Tensor q, Tensor k, Tensor v, float scale, Tensor(a!) out, Tensor(b!) lse) -> ()");
  library.def(
      "joint_attention_backward(Tensor d_out, Tensor? d_lse, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, "
      "float scale, Tensor(a!) d_q, Tensor(b!) d_k, Tensor(c!) d_v) -> ()");
  library.def(
      "qk_norm_rope(Tensor q, Tensor k, Tensor q_gain, Tensor k_gain, Tensor? cos, Tensor? sin, float epsilon, "
      "Tensor(a!) q_out, Tensor(b!) k_out, Tensor(c!) q_reciprocal, Tensor(d!) k_reciprocal) -> ()");
  library.def(
      "qk_norm_rope_backward(Tensor d_q_out, Tensor d_k_out, Tensor q, Tensor k, Tensor q_gain, Tensor k_gain, "
      "Tensor? cos, Tensor? sin, Tensor q_reciprocal, Tensor k_reciprocal, Tensor(a!) d_q, Tensor(b!) d_k, "
      "Tensor(c!) d_q_gain, Tensor(d!) d_k_gain) -> ()");
  library.def(
      "modulated_norm(Tensor x, Tensor shift, Tensor scale, float epsilon, Tensor(a!) out, Tensor(b!) mean, "
      "Tensor(c!) reciprocal) -> ()");
  library.def(
      "modulated_norm_backward(Tensor d_out, Tensor x, Tensor scale, Tensor mean, Tensor reciprocal, Tensor(a!) d_x, "
      "Tensor(b!) d_shift, Tensor(c!) d_scale) -> ()");
  library.def("gated_residual(Tensor x, Tensor gate, Tensor update, Tensor(a!) out) -> ()");
  library.def(
      "gated_residual_backward(Tensor d_out, Tensor gate, Tensor update, Tensor(a!) d_gate, Tensor(b!) d_update) -> ()");
  library.def(
      "gated_residual_norm(Tensor x, Tensor gate, Tensor update, Tensor shift, Tensor scale, float epsilon, "
      "Tensor(a!) out, Tensor(b!) normed, Tensor(c!) mean, Tensor(d!) reciprocal) -> ()");
  library.def(
      "gated_residual_norm_backward(Tensor? d_out, Tensor d_normed, Tensor out, Tensor gate, Tensor update, "
      "Tensor scale, Tensor mean, Tensor reciprocal, Tensor(a!) d_x, Tensor(b!) d_gate, Tensor(c!) d_update, "
      "Tensor(d!) d_shift, Tensor(e!) d_scale) -> ()");
  library.def("mlp_gelu(Tensor hidden, Tensor bias, Tensor(a!) out) -> ()");
  library.def(
      "mlp_gelu_backward(Tensor d_out, Tensor hidden, Tensor bias, Tensor(a!) d_hidden, Tensor(b!) d_bias) -> ()");
  library.def(
      "flow_noise(Tensor x0, Tensor sigma, Tensor sample, int step, int seed_low, int seed_high, Tensor(a!) x_t, "
      "Tensor(b!) noise) -> ()");
  library.def(
      "flow_loss(Tensor velocity, Tensor x0, Tensor noise, Tensor weight, int first_token, Tensor(a!) loss) -> ()");
  library.def(
      "flow_loss_backward(Tensor d_loss, Tensor velocity, Tensor x0, Tensor noise, Tensor weight, int first_token, "
      "Tensor(a!) d_velocity) -> ()");
  library.def("gradient_norm(Tensor[] gradients, Tensor(a!) squared) -> ()");
  library.def(
      "adamw(Tensor(a!)[] masters, Tensor[] gradients, Tensor(b!)[] moments1, Tensor(c!)[] moments2, "
      "Tensor(d!)[] emas, Tensor(e!)[] copies, Tensor clip_factor, float lr, float beta1, float beta2, float epsilon, "
      "float weight_decay, int step, float ema_decay) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(contentv_native, CompositeExplicitAutograd, library) {
  library.impl("instructions", TORCH_BOX(&contentv::instructions));
  library.impl("matrix_unit_refusal", TORCH_BOX(&contentv::matrix_unit_refusal));
}

STABLE_TORCH_LIBRARY_IMPL(contentv_native, CPU, library) {
  library.impl("matrix_product", TORCH_BOX(&contentv::matrix_product));
  library.impl("matrix_product_amx", TORCH_BOX(&contentv::matrix_product_amx));
  library.impl("joint_attention", TORCH_BOX(&contentv::joint_attention));
  library.impl("joint_attention_backward", TORCH_BOX(&contentv::joint_attention_backward));
  library.impl("modulated_norm", TORCH_BOX(&contentv::modulated_norm));
  library.impl("modulated_norm_backward", TORCH_BOX(&contentv::modulated_norm_backward));
  library.impl("gated_residual", TORCH_BOX(&contentv::gated_residual));
  library.impl("gated_residual_backward", TORCH_BOX(&contentv::gated_residual_backward));
  library.impl("gated_residual_norm", TORCH_BOX(&contentv::gated_residual_norm));
  library.impl("gated_residual_norm_backward", TORCH_BOX(&contentv::gated_residual_norm_backward));
  library.impl("qk_norm_rope", TORCH_BOX(&contentv::qk_norm_rope));
  library.impl("qk_norm_rope_backward", TORCH_BOX(&contentv::qk_norm_rope_backward));
  library.impl("mlp_gelu", TORCH_BOX(&contentv::mlp_gelu));
  library.impl("mlp_gelu_backward", TORCH_BOX(&contentv::mlp_gelu_backward));
  library.impl("flow_noise", TORCH_BOX(&contentv::flow_noise));
  library.impl("flow_loss", TORCH_BOX(&contentv::flow_loss));
  library.impl("flow_loss_backward", TORCH_BOX(&contentv::flow_loss_backward));
  library.impl("gradient_norm", TORCH_BOX(&contentv::gradient_norm));
  library.impl("adamw", TORCH_BOX(&contentv::adamw));
}
