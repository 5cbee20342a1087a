// cuBLAS and cuSOLVER handles that close themselves, and return codes as exceptions.
//
// A handle carries a stream and modes, so each host thread has its own per device, bound to the stream of every call.
#pragma once

#include "../block_svd.h"

#include <cublas_v2.h>
#include <cuda_runtime.h>
#include <cusolverDn.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <array>
#include <map>
#include <memory>

namespace lasertri {

inline const char* advice(bool no_memory) { return no_memory ? "; free some of the device's memory" : ""; }

inline void succeed(cudaError_t code, const char* call) {
  if (code != cudaSuccess)
    fail("expected ", call, " to succeed, got CUDA error ", static_cast<int>(code), " (", cudaGetErrorString(code), ")",
         advice(code == cudaErrorMemoryAllocation));
}

inline void succeed(cublasStatus_t code, const char* call) {
  if (code != CUBLAS_STATUS_SUCCESS)
    fail("expected ", call, " to succeed, got cuBLAS status ", static_cast<int>(code), " (",
         cublasGetStatusString(code), ")", advice(code == CUBLAS_STATUS_ALLOC_FAILED));
}

inline void succeed(cusolverStatus_t code, const char* call) {
  if (code != CUSOLVER_STATUS_SUCCESS)
    fail("expected ", call, " to succeed, got cuSOLVER status ", static_cast<int>(code),
         advice(code == CUSOLVER_STATUS_ALLOC_FAILED));
}

#define LASERTRI_CALL(function, ...) ::lasertri::succeed(function(__VA_ARGS__), #function)
#define LASERTRI_LAUNCHED(kernel) ::lasertri::succeed(cudaGetLastError(), "the launch of " kernel)

template <typename T, auto Destroy>
struct Close {
  void operator()(T handle) const { (void)Destroy(handle); }
};
template <typename T, auto Destroy>
using Owned = std::unique_ptr<std::remove_pointer_t<T>, Close<T, Destroy>>;

using Blas = Owned<cublasHandle_t, cublasDestroy>;
using Solver = Owned<cusolverDnHandle_t, cusolverDnDestroy>;
using SolverParams = Owned<cusolverDnParams_t, cusolverDnDestroyParams>;
using JacobiParams = Owned<gesvdjInfo_t, cusolverDnDestroyGesvdjInfo>;
using Event = Owned<cudaEvent_t, cudaEventDestroy>;

template <typename O, typename T>
O open(cusolverStatus_t (*create)(T*), const char* call) {
  T handle{};
  succeed(create(&handle), call);
  return O(handle);
}

inline Event make_event() {
  cudaEvent_t event{};
  LASERTRI_CALL(cudaEventCreateWithFlags, &event, cudaEventDisableTiming);
  return Event(event);
}

constexpr int kStreams = 4;  // on which eigenproblems that are not batched may overlap

struct Handles {
  Blas blas;
  SolverParams params = open<SolverParams>(cusolverDnCreateParams, "cusolverDnCreateParams");
  Handles() {
    cublasHandle_t handle{};
    LASERTRI_CALL(cublasCreate, &handle);
    blas.reset(handle);
  }

  // One for each stream, made when first asked for: a handle holds device memory.
  cusolverDnHandle_t solver(int64_t stream) {
    Solver& solver = solvers_[stream];
    if (!solver) solver = open<Solver>(cusolverDnCreate, "cusolverDnCreate");
    return solver.get();
  }

  // The handles of the current device and thread. They are closed as the thread ends, before CUDA is.
  static Handles& of(int32_t device) {
    thread_local std::map<int32_t, std::unique_ptr<Handles>> known;
    std::unique_ptr<Handles>& handles = known[device];
    if (!handles) handles = std::make_unique<Handles>();
    return *handles;
  }

 private:
  std::array<Solver, kStreams> solvers_;
};

inline cudaStream_t current_stream(int32_t device) {
  void* stream = nullptr;
  if (aoti_torch_get_current_cuda_stream(device, &stream) != AOTI_TORCH_SUCCESS)
    fail("expected torch to name the current stream of device ", device, ", got an error");
  return static_cast<cudaStream_t>(stream);
}

inline cudaStream_t pool_stream(int32_t device) {
  void* stream = nullptr;
  if (torch_get_cuda_stream_from_pool(/*isHighPriority=*/false, device, &stream) != AOTI_TORCH_SUCCESS)
    fail("expected torch to lend a stream of device ", device, ", got an error");
  return static_cast<cudaStream_t>(stream);
}

// cuSOLVER before 11.7.1 has no batched eigensolver: it is looked up, so that this library loads there too.
struct BatchedEigensolver {
  decltype(&cusolverDnXsyevBatched) solve = nullptr;
  decltype(&cusolverDnXsyevBatched_bufferSize) buffer_size = nullptr;
  explicit operator bool() const { return solve && buffer_size; }

  static const BatchedEigensolver& get() {
    static const BatchedEigensolver found = [] {
      BatchedEigensolver it;
      Dl_info library{};  // the cuSOLVER that this library was bound to, whichever its file
      if (!dladdr(reinterpret_cast<void*>(&cusolverDnCreate), &library)) return it;
      if (void* handle = dlopen(library.dli_fname, RTLD_NOLOAD | RTLD_LAZY)) {
        it.solve = reinterpret_cast<decltype(it.solve)>(dlsym(handle, "cusolverDnXsyevBatched"));
        it.buffer_size = reinterpret_cast<decltype(it.buffer_size)>(dlsym(handle, "cusolverDnXsyevBatched_bufferSize"));
      }
      return it;
    }();
    return found;
  }
};

}  // namespace lasertri
