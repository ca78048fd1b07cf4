// Where torch's large CPU tensors lie: one range of addresses, handed out best fit, neighbours joined when given back.
//
// A training step asks for the same sizes again and again. glibc either maps each of them anew, and the kernel clears every
// page once more, or cuts them out of its heap, whose aligned blocks leave gaps that the next step's do not fit into: a
// step then holds a third more memory than its tensors need. Here a step's tensors come to lie where the last one's did.
//
// c10::Allocator is no part of torch's stable ABI: the library serves the torch it was compiled for, which it names.

#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/alloc_cpu.h>
#include <malloc.h>
#include <pthread.h>
#include <sys/mman.h>
#include <torch/version.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <map>
#include <mutex>
#include <set>
#include <utility>

namespace contentv {
namespace {

constexpr size_t LARGE = size_t{1} << 18;        // bytes; what is smaller stays with malloc
constexpr size_t PAGE = 4096;
constexpr size_t HUGE = size_t{1} << 21;
constexpr size_t IDLE_LIMIT = size_t{64} << 20;  // pages kept beyond the last tensor, for the next ones
constexpr size_t IDLE_KEPT = size_t{32} << 20;
constexpr int HEAP_LIMIT = 1 << 22;  // bytes; what is larger malloc maps and gives back, such as windows of a video

/// The next multiple of `unit` at or behind `at`.
char* up_to(char* at, size_t unit) {
  return reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(at) + unit - 1) / unit * unit);
}

class Arena final : public c10::Allocator {
 public:
  /// Reserves as many addresses as the machine has memory; false if the system does not grant them.
  bool reserve() {
    size_ = static_cast<size_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<size_t>(sysconf(_SC_PAGESIZE));
    void* reserved = mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (reserved == MAP_FAILED) return false;
    madvise(reserved, size_, MADV_HUGEPAGE);  // a wish: fewer faults
    begin_ = touched_ = static_cast<char*>(reserved);
    blocks_[begin_] = {size_, true};
    holes_.insert({size_, begin_});
    return true;
  }

  c10::DataPtr allocate(size_t bytes) override {
    void* data = bytes >= LARGE ? take((bytes + PAGE - 1) / PAGE * PAGE) : nullptr;
    if (data == nullptr) data = c10::alloc_cpu(bytes);
    c10::profiledCPUMemoryReporter().New(data, bytes);  // torch's profiler hears of it, as from torch's own allocator
    return {data, data, &release, c10::Device(c10::kCPU)};
  }

  c10::DeleterFnPtr raw_deleter() const override { return &release; }

  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }

  bool holds(const void* data) const { return begin_ <= data && data < begin_ + size_; }

  std::mutex& mutex() { return mutex_; }

 private:
  struct Block {
    size_t bytes;
    bool is_hole;
  };
  using Blocks = std::map<char*, Block>;

  static void release(void* data);

  char* take(size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto fitting = holes_.lower_bound({bytes, nullptr});
    if (fitting == holes_.end()) return nullptr;
    const auto [whole, at] = *fitting;
    holes_.erase(fitting);
    blocks_[at] = {bytes, false};
    if (whole > bytes) {
      blocks_[at + bytes] = {whole - bytes, true};
      holes_.insert({whole - bytes, at + bytes});
    }
    if (at + bytes > touched_) touched_ = at + bytes;
    return at;
  }

  void give(char* data) {
    const std::lock_guard<std::mutex> lock(mutex_);
    auto block = blocks_.find(data);
    block->second.is_hole = true;
    const auto following = std::next(block);
    if (following != blocks_.end() && following->second.is_hole) join(block, following);
    if (block != blocks_.begin() && std::prev(block)->second.is_hole) {
      block = std::prev(block);
      join(block, std::next(block));
    }
    holes_.insert({block->second.bytes, block->first});
    if (block->first + block->second.bytes == begin_ + size_) trim(block->first);
  }

  /// Makes one hole of two neighbours, listed nowhere yet.
  void join(Blocks::iterator block, Blocks::iterator following) {
    holes_.erase({block->second.bytes, block->first});
    holes_.erase({following->second.bytes, following->first});
    block->second.bytes += following->second.bytes;
    blocks_.erase(following);
  }

  /// Gives pages behind the last tensor back to the system, but for some: backward lets go of what forward kept, while
  /// the gradients' pages fill.
  void trim(char* last) {
    if (touched_ < last + IDLE_LIMIT) return;
    char* from = up_to(last + IDLE_KEPT, HUGE);
    madvise(from, up_to(touched_, PAGE) - from, MADV_DONTNEED);
    touched_ = from;
  }

  std::mutex mutex_;
  char* begin_ = nullptr;
  size_t size_ = 0;
  char* touched_ = nullptr;  // end of the pages that may be resident
  Blocks blocks_;
  std::set<std::pair<size_t, char*>> holes_;
};

Arena& arena() {
  static Arena* const only = new Arena;  // never destroyed: tensors outlive everything
  return *only;
}

void Arena::release(void* data) {
  c10::profiledCPUMemoryReporter().Delete(data);
  if (arena().holds(data)) {
    arena().give(static_cast<char*>(data));
  } else {
    c10::free_cpu(data);
  }
}

}  // namespace
}  // namespace contentv

#define EXPORTED extern "C" __attribute__((visibility("default")))

EXPORTED const char* contentv_memory_torch() { return TORCH_VERSION; }

/// From now on large CPU tensors lie in the arena; false if the system does not grant its addresses.
EXPORTED bool contentv_memory_install() {
  if (!contentv::arena().reserve()) return false;
  // Nor does what is left to malloc go back between two steps, to be cleared and mapped in again.
#ifdef __GLIBC__
  mallopt(M_MMAP_THRESHOLD, contentv::HEAP_LIMIT);
  mallopt(M_TRIM_THRESHOLD, contentv::IDLE_LIMIT);
#endif
  // A child must not inherit the lock from a thread that it does not have.
  pthread_atfork([] { contentv::arena().mutex().lock(); }, [] { contentv::arena().mutex().unlock(); },
                 [] { contentv::arena().mutex().unlock(); });
  c10::SetCPUAllocator(&contentv::arena(), 0);
  return true;
}

/// Makes memory of the arena zeros by giving its pages back; false if it lies elsewhere. Huge pages whole: parts of one
/// would come back by the 4 KiB.
EXPORTED bool contentv_memory_clear(char* data, size_t bytes) {
  using namespace contentv;
  if (!arena().holds(data)) return false;
  char *const from = up_to(data, HUGE), *const end = data + bytes;
  char* const to = up_to(end - HUGE + 1, HUGE);
  if (to <= from || madvise(from, to - from, MADV_DONTNEED) != 0) {
    std::memset(data, 0, bytes);
    return true;
  }
  std::memset(data, 0, from - data);
  std::memset(to, 0, end - to);
  return true;
}
