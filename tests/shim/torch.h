// What csrc needs of torch's stable ABI, on the shim's memory and streams.
#pragma once

#include "libraries.h"

#include <atomic>
#include <stdexcept>

namespace torch::headeronly {
enum class ScalarType : int8_t { Byte = 0, Int = 3, Half = 5, Float = 6, Double = 7, BFloat16 = 15 };
inline std::ostream& operator<<(std::ostream& out, ScalarType type) { return out << "type " << static_cast<int>(type); }
}  // namespace torch::headeronly

namespace torch::stable {

using headeronly::ScalarType;
inline int64_t bytes_of(ScalarType type) {
  switch (type) {
    case ScalarType::Double: return 8;
    case ScalarType::Half: case ScalarType::BFloat16: return 2;
    case ScalarType::Byte: return 1;
    default: return 4;
  }
}

class Tensor {
 public:
  std::shared_ptr<shim::Memory> memory;
  std::vector<int64_t> sizes, strides;
  ScalarType dtype{};
  int32_t device = 0;
  bool on_cuda = true;

  bool is_cuda() const { return on_cuda; }
  int64_t dim() const { return static_cast<int64_t>(sizes.size()); }
  int64_t size(int64_t i) const { return sizes.at(static_cast<size_t>(i)); }
  int64_t stride(int64_t i) const { return strides.at(static_cast<size_t>(i)); }
  ScalarType scalar_type() const { return dtype; }
  int32_t get_device_index() const { return device; }
  const void* const_data_ptr() const { return memory->data; }
  void* mutable_data_ptr() const { return memory->data; }
  template <typename T>
  T* mutable_data_ptr() const {
    return reinterpret_cast<T*>(memory->data);
  }
};

inline thread_local int current_streams[shim::kDevices] = {};  // as numbered by shim::stream_of

inline Tensor new_empty(const Tensor& like, std::vector<int64_t> sizes, ScalarType dtype) {
  if (shim::planned(__func__)) throw std::runtime_error("CUDA out of memory");
  int64_t count = 1;
  std::vector<int64_t> strides(sizes.size());
  for (size_t i = sizes.size(); i-- > 0; count *= sizes[i]) strides[i] = count;
  const auto memory = shim::allocate(count * bytes_of(dtype), shim::stream_of(like.device, current_streams[like.device]));
  return {memory, std::move(sizes), std::move(strides), dtype, like.device, true};
}
inline Tensor new_zeros(const Tensor& like, std::vector<int64_t> sizes, ScalarType dtype) {
  Tensor made = new_empty(like, std::move(sizes), dtype);
  shim::submit(made.memory->owner, {[memory = made.memory.get()] {
    std::memset(memory->data, 0, static_cast<size_t>(memory->size));
  }});
  return made;
}
inline Tensor transpose(Tensor tensor, size_t one, size_t other) {
  std::swap(tensor.sizes.at(one), tensor.sizes.at(other));
  std::swap(tensor.strides.at(one), tensor.strides.at(other));
  return tensor;
}

namespace accelerator {
class DeviceGuard {
 public:
  explicit DeviceGuard(int32_t device) : before_(std::exchange(shim::current_device, device)) {}
  ~DeviceGuard() { shim::current_device = before_; }

 private:
  const int before_;
};
}  // namespace accelerator

}  // namespace torch::stable

constexpr int AOTI_TORCH_SUCCESS = 0;
inline int aoti_torch_get_current_cuda_stream(int32_t device, void** stream) {
  MAY_FAIL(int);
  const int which = torch::stable::current_streams[device];
  *stream = which ? shim::stream_of(device, which) : nullptr;  // the default stream is null
  return AOTI_TORCH_SUCCESS;
}
inline int torch_get_cuda_stream_from_pool(bool, int32_t device, void** stream) {
  MAY_FAIL(int);
  static std::atomic<unsigned> lent{0};
  *stream = shim::stream_of(device, static_cast<int>(1 + lent++ % shim::kPool));
  return AOTI_TORCH_SUCCESS;
}

// The op under test, once it is registered.
using Op = std::tuple<torch::stable::Tensor, torch::stable::Tensor, torch::stable::Tensor>(
    torch::stable::Tensor, std::string, bool, int64_t);
struct Library {
  inline static Op* factor_blocks = nullptr;
  void impl(const char*, Op* op) { factor_blocks = op; }
};
#define TORCH_BOX(function) function
#define STABLE_TORCH_LIBRARY_IMPL(space, key, library)                         \
  static void registration(Library& library);                                  \
  static const bool registered = (registration(*std::make_unique<Library>()), true); \
  static void registration(Library& library)
