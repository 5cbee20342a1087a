// csrc/cuda on the shim, behind a C interface for ctypes.
#include "torch.h"

#include <dlfcn.h>

// What the library looks up of cuSOLVER: `absent` names the step that finds nothing.
static std::string absent;
static int shim_dladdr(const void* address, Dl_info* info) { return absent == "dladdr" ? 0 : dladdr(address, info); }
static void* shim_dlopen(const char* name, int mode) { return absent == "dlopen" ? nullptr : dlopen(name, mode); }
static void* shim_dlsym(void* handle, const char* name) { return absent == name ? nullptr : dlsym(handle, name); }
#define dladdr shim_dladdr
#define dlopen shim_dlopen
#define dlsym shim_dlsym

static int64_t panel_elements = 1 << 24;
#include "cuda/block_svd.cu"

using torch::stable::ScalarType;
using torch::stable::Tensor;

// Settings and figures, each behind the lock.
SHIM_API void shim_schedule(int schedule, uint64_t seed) {
  const shim::Lock lock(shim::world);
  shim::schedule = static_cast<shim::Schedule>(schedule), shim::draw = seed;
}
SHIM_API void shim_use(int device, int stream) { torch::stable::current_streams[device] = stream; }
SHIM_API void shim_panel_elements(int64_t count) {
  const shim::Lock lock(shim::world);
  panel_elements = count;
}
SHIM_API void shim_absent(const char* name) { absent = name; }
SHIM_API void shim_unconverged(long solve) {
  const shim::Lock lock(shim::world);
  shim::unconverged = solve, shim::solves = 0;
}
SHIM_API void shim_fail(const char* name, long after, int code) {
  const shim::Lock lock(shim::world);
  shim::failure = {name, after, code};
  shim::calls.clear();
}
SHIM_API long shim_calls(const char* name) {
  const shim::Lock lock(shim::world);
  return shim::calls[name];
}
SHIM_API int64_t shim_last_allocation() {
  const shim::Lock lock(shim::world);
  return shim::last_allocation;
}
SHIM_API int shim_current_device() { return shim::current_device; }

// Open things that are not zero, by kind.
SHIM_API void shim_open(char* text, size_t size) {
  const shim::Lock lock(shim::world);
  std::ostringstream out;
  for (const auto& [kind, count] : shim::open_things)
    if (count) out << kind << " " << count << "\n";
  std::snprintf(text, size, "%s", out.str().c_str());
}

// Runs all that is queued; what went wrong since the last time, one a line.
SHIM_API void shim_settle(char* text, size_t size) {
  const shim::Lock lock(shim::world);
  shim::settle();
  std::ostringstream out;
  for (const std::string& fault : shim::faults) out << fault << "\n";
  shim::faults.clear();
  std::snprintf(text, size, "%s", out.str().c_str());
}

// Runs the op on a copy of the input that arrives on the current stream, and waits for that stream alone. True, or false
// with the exception's text.
SHIM_API bool shim_factor(
    const void* data, int64_t bytes, int dim, const int64_t* sizes, const int64_t* strides, int dtype, int device,
    bool on_cuda, const char* method, bool fp64, int64_t workspace, void* basis, void* sigma, void* status, char* text,
    size_t size) {
  try {
    Tensor blocks{{}, {sizes, sizes + dim}, {strides, strides + dim}, static_cast<ScalarType>(dtype), device, on_cuda};
    CUstream_st& stream = *shim::stream_of(device, torch::stable::current_streams[device]);
    blocks.memory = shim::allocate(bytes, &stream);
    shim::submit(&stream, {[=, to = blocks.memory->data] { std::copy_n(static_cast<const char*>(data), bytes, to); }});
    const auto results = Library::factor_blocks(blocks, method, fp64, workspace);
    shim::wait_for(stream);
    const auto copy = [](const Tensor& from, void* to) { std::copy_n(from.memory->data, from.memory->size, static_cast<char*>(to)); };
    copy(std::get<0>(results), basis), copy(std::get<1>(results), sigma), copy(std::get<2>(results), status);
    return true;
  } catch (const std::exception& error) {
    std::snprintf(text, size, "%s", error.what());
    return false;
  }
}
extern "C" void __gcov_dump() __attribute__((weak));
SHIM_API void shim_write_coverage() {
  if (__gcov_dump) __gcov_dump();
}
