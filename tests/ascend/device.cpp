// A device named npu that is host memory: torch's PrivateUse1, with an allocator that counts, streams and events whose
// work is done when the call returns, a generator of its own, autocast, and every operator by the CPU's kernel.
//
// Not an emulator: it shows what an engine asks of a device and whether its tensors lie where they should. Nothing of an
// NPU's arithmetic, order or speed is in it.

#include <ATen/EmptyTensor.h>
#include <ATen/autocast_mode.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/_reshape_alias_cpu_dispatch.h>
#include <ATen/ops/as_strided_cpu_dispatch.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/set_cpu_dispatch.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_cpu_dispatch.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <atomic>
#include <chrono>
#include <cstdlib>

namespace {

using at::Tensor;
using c10::Device;
using c10::DeviceIndex;
constexpr auto NPU = c10::DeviceType::PrivateUse1;
constexpr int LARGEST = 8;  // devices of a machine

thread_local DeviceIndex current_device = 0;
thread_local c10::StreamId current_streams[LARGEST] = {};

DeviceIndex device_count() {
  const char* wish = std::getenv("CONTENTV_SIMULATED_NPUS");
  return wish ? static_cast<DeviceIndex>(std::atoi(wish)) : 1;
}

// Memory ------------------------------------------------------------------------------------------------------------

std::atomic<int64_t> held{0}, peak{0};

struct Block {
  void* data;
  int64_t size;
};

void release(void* context) {
  auto* block = static_cast<Block*>(context);
  held -= block->size;
  std::free(block->data);
  delete block;
}

struct Allocator final : c10::Allocator {
  c10::DataPtr allocate(size_t size) override {
    void* data = nullptr;
    if (size && posix_memalign(&data, 64, size)) TORCH_CHECK(false, "the simulated NPU has no ", size, " bytes left");
    auto* block = new Block{data, static_cast<int64_t>(size)};
    const int64_t now = held += block->size;
    for (int64_t seen = peak; now > seen && !peak.compare_exchange_weak(seen, now);) continue;
    return {data, block, &release, Device(NPU, current_device)};
  }
  void copy_data(void* to, const void* from, std::size_t count) const override { default_copy_data(to, from, count); }
};

Allocator allocator;
REGISTER_ALLOCATOR(NPU, &allocator)

// Device, streams, events, generator --------------------------------------------------------------------------------

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return NPU; }
  Device getDevice() const override { return Device(NPU, current_device); }
  Device exchangeDevice(Device device) const override {
    const Device before = getDevice();
    setDevice(device);
    return before;
  }
  void setDevice(Device device) const override {
    TORCH_CHECK(device.index() < device_count(), "there is no simulated NPU ", device.index());
    if (device.index() >= 0) current_device = device.index();
  }
  void uncheckedSetDevice(Device device) const noexcept override {
    if (device.index() >= 0) current_device = device.index();
  }
  DeviceIndex deviceCount() const noexcept override { return device_count(); }

  c10::Stream stream(Device device, c10::StreamId id) const {
    const DeviceIndex index = device.has_index() ? device.index() : current_device;
    return c10::Stream(c10::Stream::UNSAFE, Device(NPU, index), id);
  }
  c10::Stream getStream(Device device) const override {
    return stream(device, current_streams[device.has_index() ? device.index() : current_device]);
  }
  c10::Stream getDefaultStream(Device device) const override { return stream(device, 0); }
  c10::Stream getStreamFromGlobalPool(Device device, bool) const override { return getNewStream(device, 0); }
  c10::Stream getNewStream(Device device, int) const override {
    static std::atomic<c10::StreamId> next{1};
    return stream(device, next++);
  }
  c10::Stream exchangeStream(c10::Stream chosen) const override {
    const auto before = getStream(chosen.device());
    current_streams[chosen.device_index()] = chosen.id();
    return before;
  }
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
  void synchronizeDevice(const DeviceIndex) const override {}

  // An event is the time at which it was recorded.
  using Clock = std::chrono::steady_clock;
  void record(void** event, const c10::Stream&, const DeviceIndex, const c10::EventFlag) const override {
    if (!*event) *event = new Clock::time_point;
    *static_cast<Clock::time_point*>(*event) = Clock::now();
  }
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void synchronizeEvent(void*) const override {}
  void destroyEvent(void* event, const DeviceIndex) const noexcept override {
    delete static_cast<Clock::time_point*>(event);
  }
  double elapsedTime(void* begin, void* end, const DeviceIndex) const override {
    const auto passed = *static_cast<Clock::time_point*>(end) - *static_cast<Clock::time_point*>(begin);
    return std::chrono::duration<double, std::milli>(passed).count();
  }
};

C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard)

at::Generator generators[LARGEST];

const at::Generator& generator_of(DeviceIndex index) { return generators[index < 0 ? current_device : index]; }

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return device_count() > 0; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  void init() const override {}
  DeviceIndex deviceCount() const override { return device_count(); }
  DeviceIndex getCurrentDevice() const override { return current_device; }
  void setCurrentDevice(DeviceIndex index) const override { current_device = index; }
  DeviceIndex exchangeDevice(DeviceIndex index) const override { return std::exchange(current_device, index); }
  DeviceIndex maybeExchangeDevice(DeviceIndex index) const override {
    return index < 0 ? current_device : std::exchange(current_device, index);
  }
  c10::Allocator* getPinnedMemoryAllocator() const override { return c10::GetAllocator(c10::kCPU); }
  const at::Generator& getDefaultGenerator(DeviceIndex index) const override { return generator_of(index); }
  at::Generator getNewGenerator(DeviceIndex index) const override { return generator_of(index).clone(); }
  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t size) const override {
    auto fresh = allocator.allocate(size);
    std::memcpy(fresh.get(), storage.data(), std::min(size, storage.nbytes()));
    storage.unsafeGetStorageImpl()->set_data_ptr_noswap(std::move(fresh));
    storage.unsafeGetStorageImpl()->set_nbytes(size);
  }
};

Hooks hooks;
const bool registered = (at::RegisterPrivateUse1HooksInterface(&hooks), true);

// Operators ---------------------------------------------------------------------------------------------------------

Tensor host(const Tensor& tensor) {
  if (tensor.is_cpu()) return tensor;
  const auto options = at::TensorOptions().dtype(tensor.scalar_type());
  auto alias = at::from_blob(tensor.data_ptr(), tensor.sizes(), tensor.strides(), options);
  if (tensor.is_conj()) alias._set_conj(true);
  if (tensor.is_neg()) alias._set_neg(true);
  return alias;
}

Tensor empty(at::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
             std::optional<Device> device, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  const c10::DeviceGuard guard(device.value_or(Device(NPU, current_device)));
  return at::detail::empty_generic(size, &allocator, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                   c10::dtype_or_default(dtype), format);
}

Tensor empty_strided(at::IntArrayRef size, at::IntArrayRef stride, std::optional<at::ScalarType> dtype,
                     std::optional<at::Layout>, std::optional<Device> device, std::optional<bool>) {
  const c10::DeviceGuard guard(device.value_or(Device(NPU, current_device)));
  return at::detail::empty_strided_generic(size, stride, &allocator,
                                           c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                           c10::dtype_or_default(dtype));
}

Tensor copy_from(const Tensor& from, const Tensor& to, bool) {
  host(to).copy_(host(from));
  return to;
}

Tensor copy_from_and_resize(const Tensor& from, const Tensor& to) {
  at::native::resize_(to, from.sizes(), std::nullopt);
  return copy_from(from, to, false);
}

Tensor as_strided(const Tensor& self, c10::SymIntArrayRef size, c10::SymIntArrayRef stride,
                  std::optional<c10::SymInt> offset) {
  return at::cpu::as_strided_symint(self, size, stride, offset);
}

Tensor view(const Tensor& self, c10::SymIntArrayRef size) { return at::cpu::view_symint(self, size); }

Tensor reshape_alias(const Tensor& self, c10::SymIntArrayRef size, c10::SymIntArrayRef stride) {
  return at::cpu::_reshape_alias_symint(self, size, stride);
}

Tensor unfold(const Tensor& self, int64_t axis, int64_t size, int64_t step) {
  return at::native::unfold(self, axis, size, step);
}

Tensor& set_storage(Tensor& self, at::Storage storage, int64_t offset, at::IntArrayRef size, at::IntArrayRef stride) {
  return at::cpu::set_(self, storage, offset, size, stride);
}

Tensor& set_whole_storage(Tensor& self, at::Storage storage) {
  return at::cpu::set_(self, storage, 0, {static_cast<int64_t>(storage.nbytes() / self.element_size())}, {1});
}

const Tensor& resize(const Tensor& self, c10::SymIntArrayRef size, std::optional<at::MemoryFormat> format) {
  return at::native::resize_(self, C10_AS_INTARRAYREF_SLOW(size), format);
}

at::Scalar item(const Tensor& self) { return host(self).item(); }

// Where nobody names a generator, the device's own stands, not the CPU's.
void by_the_cpu(const c10::OperatorHandle& op, c10::Stack* stack) {
  const auto& arguments = op.schema().arguments();
  const auto first = stack->size() - arguments.size();
  for (size_t index = 0; index < arguments.size(); ++index) {
    auto& value = (*stack)[first + index];
    if (arguments[index].name() == "generator" && value.isNone()) value = generator_of(-1);
  }
  at::native::cpu_fallback(op, stack);
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, library) {
  library.impl("empty.memory_format", &empty);
  library.impl("empty_strided", &empty_strided);
  library.impl("_copy_from", &copy_from);
  library.impl("_copy_from_and_resize", &copy_from_and_resize);
  library.impl("as_strided", &as_strided);
  library.impl("view", &view);
  library.impl("_reshape_alias", &reshape_alias);
  library.impl("unfold", &unfold);
  library.impl("set_.source_Storage_storage_offset", &set_storage);
  library.impl("set_.source_Storage", &set_whole_storage);
  library.impl("resize_", &resize);
  library.impl("_local_scalar_dense", &item);
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, library) {
  library.fallback(torch::CppFunction::makeFromBoxedFunction<&by_the_cpu>());
}

TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, library) { library.fallback(torch::CppFunction::makeFallthrough()); }

TORCH_LIBRARY_IMPL(aten, AutocastPrivateUse1, m) {  // torch's macros say m
#define LOW(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, lower_precision_fp)
#define FULL(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, fp32)
  AT_FORALL_LOWER_PRECISION_FP(LOW)
  AT_FORALL_FP32(FULL)
}

// What the module that stands for torch_npu asks. ---------------------------------------------------------------------

TORCH_LIBRARY(npu_simulation, library) {
  library.def("set_generator(int index, Generator? generator) -> ()",
              [](int64_t index, std::optional<at::Generator> chosen) { generators[index] = std::move(*chosen); });
  library.def("held() -> int", []() { return held.load(); });
  library.def("peak() -> int", []() { return peak.load(); });
  library.def("reset_peak() -> ()", []() { peak = held.load(); });
  library.def("current_device() -> int", []() -> int64_t { return current_device; });
  library.def("set_device(int index) -> ()", [](int64_t index) {
    TORCH_CHECK(index < device_count(), "there is no simulated NPU ", index);
    current_device = static_cast<DeviceIndex>(index);
  });
  library.def("device_count() -> int", []() -> int64_t { return device_count(); });
  library.def("host(Tensor(a) tensor) -> Tensor(a)");
}

TORCH_LIBRARY_IMPL(npu_simulation, PrivateUse1, library) { library.impl("host", &host); }
TORCH_LIBRARY_IMPL(npu_simulation, CPU, library) { library.impl("host", &host); }

}  // namespace
