// The calls of the CUDA runtime, cuBLAS and cuSOLVER that csrc/cuda makes. Products and solvers are plain loops; a solver
// works in two steps, with its workspace in between, so that two of them cannot share one unseen.
#pragma once

#include "streams.h"

#include <atomic>
#include <cmath>
#include <dlfcn.h>

struct cublasContext {
  int device;
  cudaStream_t stream;
  cublasMath_t mode;
};
struct cusolverDnContext {
  int device;
  cudaStream_t stream;
};
struct cusolverDnParams { int unused; };
struct gesvdjInfo { int unused; };

namespace shim {

inline std::set<const void*> handles;

template <typename T, typename... Fields>
T* open_thing(const char* kind, Fields... fields) {
  const Lock lock(world);
  ++open_things[kind];
  auto* made = new T{fields...};
  handles.insert(made);
  return made;
}
template <typename T>
void close_thing(const char* kind, T* thing) {
  const Lock lock(world);
  --open_things[kind];
  if (!handles.erase(thing)) return fault("a closed ", kind, " was closed again");
  delete thing;
}
inline bool is_open(const void* thing) {
  const Lock lock(world);
  return handles.count(thing) > 0;
}

inline long unconverged = -1;  // the solve, counted from 0, that reports so
inline std::atomic<long> solves{0};

template <typename T>
T product(int64_t count, const T* p, const T* q) {
  T sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += p[i] * q[i];
  return sum;
}

// One-sided Jacobi (Hestenes, 1958): the columns of X (m x n) are turned until they are orthogonal, V (n x n) with them.
// Returns their norms, ascending, with the column of each.
template <typename T>
std::vector<std::pair<T, int64_t>> orthogonalise(int64_t m, int64_t n, T* x, T* v) {
  for (int64_t i = 0; i < n * n; ++i) v[i] = i % (n + 1) == 0;
  std::vector<T> squares;
  for (int64_t i = 0; i < n; ++i) squares.push_back(product(m, x + i * m, x + i * m));
  const auto turn = [](int64_t count, T* p, T* q, T c, T s) {
    for (int64_t i = 0; i < count; ++i) {
      const T old = p[i];
      p[i] = c * old - s * q[i], q[i] = s * old + c * q[i];
    }
  };
  bool turned = true;
  for (int sweep = 0; turned && sweep < 60; ++sweep) {
    turned = false;
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = i + 1; j < n; ++j) {
        T &pp = squares[static_cast<size_t>(i)], &qq = squares[static_cast<size_t>(j)];
        if (pp == 0 || qq == 0) continue;
        T *p = x + i * m, *q = x + j * m;
        const T pq = product(m, p, q);
        if (std::abs(pq) <= std::numeric_limits<T>::epsilon() * std::sqrt(pp) * std::sqrt(qq)) continue;
        const T cotangent = (qq - pp) / (2 * pq);
        const T tangent = std::copysign(T(1), cotangent) / (std::abs(cotangent) + std::hypot(T(1), cotangent));
        const T c = 1 / std::hypot(T(1), tangent), s = c * tangent;
        turn(m, p, q, c, s), turn(n, v + i * n, v + j * n, c, s);
        pp = product(m, p, p), qq = product(m, q, q), turned = true;
      }
  }
  std::vector<std::pair<T, int64_t>> norms;
  for (int64_t i = 0; i < n; ++i) norms.emplace_back(std::sqrt(squares[static_cast<size_t>(i)]), i);
  std::sort(norms.begin(), norms.end());
  return norms;
}

template <typename T>
bool solvable(const char* solver, const T* matrix, int64_t size, int* info) {
  *info = solves.fetch_add(1, std::memory_order_relaxed) == unconverged ? 1 : 0;
  if (std::all_of(matrix, matrix + size, [](T value) { return std::isfinite(value); })) return true;
  fault(solver, " was given a value that is not finite");
  return false;
}

// The lower triangle of a matrix without negative eigenvalues becomes its eigenvectors, ascending.
template <typename T>
void eigen(cudaStream_t stream, int64_t n, T* a, T* w, T* work, int* info) {
  submit(stream, {[=] {
    for (int64_t j = 0; j < n; ++j)
      for (int64_t i = j; i < n; ++i) work[i * n + j] = work[j * n + i] = a[j * n + i];
  }});
  submit(stream, {[=] {
    if (!solvable("the eigensolver", work, n * n, info)) return;
    const auto norms = orthogonalise(n, n, work, work + n * n);
    for (size_t j = 0; j < norms.size(); ++j) {
      w[j] = norms[j].first;
      std::copy_n(work + (n + norms[j].second) * n, n, a + j * n);
    }
  }});
}

// A (m x n, contiguous) = U diag(s) Vᵀ with min(m, n) columns, descending; A is lost.
template <typename T>
void svd(cudaStream_t stream, int64_t m, int64_t n, T* a, T* s, T* u, T* v, T* work, int* info) {
  submit(stream, {[=] {
    std::copy_n(a, m * n, work);
    std::fill_n(a, m * n, std::numeric_limits<T>::quiet_NaN());
  }});
  submit(stream, {[=] {
    if (!solvable("the SVD", work, m * n, info)) return;
    T* const turned = work + m * n;
    auto norms = orthogonalise(m, n, work, turned);
    std::reverse(norms.begin(), norms.end());
    for (int64_t j = 0; j < std::min(m, n); ++j) {
      const auto [norm, from] = norms[static_cast<size_t>(j)];
      s[j] = norm;
      std::copy_n(turned + from * n, n, v + j * n);
      for (int64_t i = 0; i < m; ++i) u[j * m + i] = norm > 0 ? work[from * m + i] / norm : 0;
    }
  }});
}

inline float as_tf32(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  bits &= 0xffffe000u;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

template <typename T>
cublasStatus_t multiply(
    cublasHandle_t h, cublasOperation_t a_op, cublasOperation_t b_op, int m, int n, int k, T times, const T* a, int lda,
    long long a_step, const T* b, int ldb, long long b_step, T keep, T* c, int ldc, long long c_step, int count) {
  const bool a_turned = a_op == CUBLAS_OP_T, b_turned = b_op == CUBLAS_OP_T;
  if (!is_open(h) || m < 0 || n < 0 || k < 0 || count < 0 || lda < std::max(1, a_turned ? k : m) ||
      ldb < std::max(1, b_turned ? n : k) || ldc < std::max(1, m))
    return CUBLAS_STATUS_INVALID_VALUE;
  const bool cut = std::is_same_v<T, float> && h->mode != CUBLAS_PEDANTIC_MATH;
  submit(h->stream, {[=] {
    const auto value = [cut](T x) { return cut ? static_cast<T>(as_tf32(static_cast<float>(x))) : x; };
    for (int64_t batch = 0; batch < count; ++batch)
      for (int64_t j = 0; j < n; ++j)
        for (int64_t i = 0; i < m; ++i) {
          T sum = 0;
          const T* from = a + batch * a_step + (a_turned ? i * lda : i);
          const T* with = b + batch * b_step + (b_turned ? j : j * ldb);
          for (int64_t l = 0; l < k; ++l)
            sum += value(from[a_turned ? l : l * lda]) * value(with[b_turned ? l * ldb : l]);
          T& out = c[batch * c_step + j * ldc + i];
          out = times * sum + (keep == 0 ? 0 : keep * out);  // what is not kept is not read, be it a NaN
        }
  }});
  return CUBLAS_STATUS_SUCCESS;
}

template <typename Handle>
bool usable(Handle h, const void* other) {
  return is_open(h) && is_open(other) && at(h->stream).device == h->device;
}
inline size_t value_bytes(cudaDataType type) { return type == CUDA_R_64F ? 8 : 4; }
inline size_t square_bytes(int64_t n, cudaDataType type) { return 2 * static_cast<size_t>(n * n) * value_bytes(type); }
constexpr size_t kHostBytes = 64;

inline bool is_eigenproblem(
    cusolverEigMode_t jobz, cublasFillMode_t uplo, int64_t n, cudaDataType a, int64_t lda, cudaDataType w,
    cudaDataType compute) {
  return jobz == CUSOLVER_EIG_MODE_VECTOR && uplo == CUBLAS_FILL_MODE_LOWER && n > 0 && lda == n && a == w && a == compute;
}

inline cusolverStatus_t eigen_batch(
    cusolverDnHandle_t h, int64_t n, cudaDataType type, void* a, void* w, void* device, size_t device_bytes, void* host,
    size_t host_bytes, int* info, int64_t count) {
  if (device_bytes < square_bytes(n, type) * static_cast<size_t>(count) || host_bytes < kHostBytes)
    return CUSOLVER_STATUS_INVALID_VALUE;
  std::memset(host, 0, host_bytes);
  const auto solve = [&](auto* matrices, auto* values) {
    auto* work = static_cast<decltype(matrices)>(device);
    for (int64_t i = 0; i < count; ++i)
      eigen(h->stream, n, matrices + i * n * n, values + i * n, work + i * 2 * n * n, info + i);
  };
  if (type == CUDA_R_64F)
    solve(static_cast<double*>(a), static_cast<double*>(w));
  else
    solve(static_cast<float*>(a), static_cast<float*>(w));
  return CUSOLVER_STATUS_SUCCESS;
}

}  // namespace shim

#define SHIM_API extern "C" __attribute__((visibility("default")))

SHIM_API cudaError_t cudaGetLastError() {
  MAY_FAIL(cudaError_t);
  return std::exchange(shim::last_error, cudaSuccess);
}
SHIM_API const char* cudaGetErrorString(cudaError_t) { return "its text"; }
SHIM_API cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  MAY_FAIL(cudaError_t);
  *event = shim::open_thing<CUevent_st>("event");
  return cudaSuccess;
}
SHIM_API cudaError_t cudaEventDestroy(cudaEvent_t event) {
  shim::close_thing("event", event);
  return cudaSuccess;
}
SHIM_API cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  MAY_FAIL(cudaError_t);
  shim::submit(stream, {{}, {}, event->mark, ++event->mark->asked});
  return cudaSuccess;
}
SHIM_API cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  MAY_FAIL(cudaError_t);
  shim::submit(stream, {{}, event->mark, {}, event->mark->asked});
  return cudaSuccess;
}
SHIM_API cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
  MAY_FAIL(cudaError_t);
  shim::submit(stream, {[=] { std::memcpy(to, from, bytes); }});
  return cudaSuccess;
}

#define SHIM_HANDLE(Status, Handle, create, destroy, ...)                                          \
  SHIM_API Status create(Handle* handle) {                                                         \
    MAY_FAIL(Status);                                                                              \
    *handle = shim::open_thing<std::remove_pointer_t<Handle>>(#Handle __VA_OPT__(, ) __VA_ARGS__); \
    return static_cast<Status>(0);                                                                 \
  }                                                                                                \
  SHIM_API Status destroy(Handle handle) {                                                         \
    shim::close_thing(#Handle, handle);                                                            \
    return static_cast<Status>(0);                                                                 \
  }
SHIM_HANDLE(
    cublasStatus_t, cublasHandle_t, cublasCreate, cublasDestroy, shim::current_device, nullptr, CUBLAS_DEFAULT_MATH)
SHIM_HANDLE(cusolverStatus_t, cusolverDnHandle_t, cusolverDnCreate, cusolverDnDestroy, shim::current_device, nullptr)
SHIM_HANDLE(cusolverStatus_t, cusolverDnParams_t, cusolverDnCreateParams, cusolverDnDestroyParams)
SHIM_HANDLE(cusolverStatus_t, gesvdjInfo_t, cusolverDnCreateGesvdjInfo, cusolverDnDestroyGesvdjInfo)

SHIM_API cublasStatus_t cublasSetStream(cublasHandle_t handle, cudaStream_t stream) {
  MAY_FAIL(cublasStatus_t);
  if (!shim::is_open(handle) || shim::at(stream).device != handle->device) return CUBLAS_STATUS_INVALID_VALUE;
  handle->stream = stream;
  return CUBLAS_STATUS_SUCCESS;
}
SHIM_API cublasStatus_t cublasSetMathMode(cublasHandle_t handle, cublasMath_t mode) {
  MAY_FAIL(cublasStatus_t);
  handle->mode = mode;
  return CUBLAS_STATUS_SUCCESS;
}
SHIM_API const char* cublasGetStatusString(cublasStatus_t) { return "its text"; }
SHIM_API cusolverStatus_t cusolverDnSetStream(cusolverDnHandle_t handle, cudaStream_t stream) {
  MAY_FAIL(cusolverStatus_t);
  if (!shim::is_open(handle) || shim::at(stream).device != handle->device) return CUSOLVER_STATUS_INVALID_VALUE;
  handle->stream = stream;
  return CUSOLVER_STATUS_SUCCESS;
}
SHIM_API cusolverStatus_t cusolverDnXsyevd_bufferSize(
    cusolverDnHandle_t h, cusolverDnParams_t params, cusolverEigMode_t jobz, cublasFillMode_t uplo, int64_t n,
    cudaDataType a_type, const void*, int64_t lda, cudaDataType w_type, const void*, cudaDataType compute, size_t* device,
    size_t* host) {
  MAY_FAIL(cusolverStatus_t);
  if (!shim::usable(h, params) || !shim::is_eigenproblem(jobz, uplo, n, a_type, lda, w_type, compute))
    return CUSOLVER_STATUS_INVALID_VALUE;
  *device = shim::square_bytes(n, a_type), *host = shim::kHostBytes;
  return CUSOLVER_STATUS_SUCCESS;
}
SHIM_API cusolverStatus_t cusolverDnXsyevd(
    cusolverDnHandle_t h, cusolverDnParams_t params, cusolverEigMode_t jobz, cublasFillMode_t uplo, int64_t n,
    cudaDataType a_type, void* a, int64_t lda, cudaDataType w_type, void* w, cudaDataType compute, void* device,
    size_t device_bytes, void* host, size_t host_bytes, int* info) {
  MAY_FAIL(cusolverStatus_t);
  if (!shim::usable(h, params) || !shim::is_eigenproblem(jobz, uplo, n, a_type, lda, w_type, compute))
    return CUSOLVER_STATUS_INVALID_VALUE;
  return shim::eigen_batch(h, n, a_type, a, w, device, device_bytes, host, host_bytes, info, 1);
}
SHIM_API cusolverStatus_t cusolverDnXsyevBatched_bufferSize(
    cusolverDnHandle_t h, cusolverDnParams_t params, cusolverEigMode_t jobz, cublasFillMode_t uplo, int64_t n,
    cudaDataType a_type, const void*, int64_t lda, cudaDataType w_type, const void*, cudaDataType compute, size_t* device,
    size_t* host, int64_t count) {
  MAY_FAIL(cusolverStatus_t);
  if (!shim::usable(h, params) || !shim::is_eigenproblem(jobz, uplo, n, a_type, lda, w_type, compute) || count >= 65536)
    return CUSOLVER_STATUS_INVALID_VALUE;
  *device = shim::square_bytes(n, a_type) * static_cast<size_t>(count), *host = shim::kHostBytes;
  return CUSOLVER_STATUS_SUCCESS;
}
SHIM_API cusolverStatus_t cusolverDnXsyevBatched(
    cusolverDnHandle_t h, cusolverDnParams_t params, cusolverEigMode_t jobz, cublasFillMode_t uplo, int64_t n,
    cudaDataType a_type, void* a, int64_t lda, cudaDataType w_type, void* w, cudaDataType compute, void* device,
    size_t device_bytes, void* host, size_t host_bytes, int* info, int64_t count) {
  MAY_FAIL(cusolverStatus_t);
  if (!shim::usable(h, params) || !shim::is_eigenproblem(jobz, uplo, n, a_type, lda, w_type, compute) || count >= 65536)
    return CUSOLVER_STATUS_INVALID_VALUE;
  return shim::eigen_batch(h, n, a_type, a, w, device, device_bytes, host, host_bytes, info, count);
}

#define SHIM_OF_TYPE(letter, T)                                                                                      \
  SHIM_API cublasStatus_t cublas##letter##gemmStridedBatched(                                                        \
      cublasHandle_t h, cublasOperation_t a_op, cublasOperation_t b_op, int m, int n, int k, const T* alpha,         \
      const T* a, int lda, long long a_step, const T* b, int ldb, long long b_step, const T* beta, T* c, int ldc,    \
      long long c_step, int count) {                                                                                 \
    MAY_FAIL(cublasStatus_t);                                                                                        \
    return shim::multiply(h, a_op, b_op, m, n, k, *alpha, a, lda, a_step, b, ldb, b_step, *beta, c, ldc, c_step, count); \
  }                                                                                                                  \
  SHIM_API cusolverStatus_t cusolverDn##letter##gesvdj_bufferSize(                                                   \
      cusolverDnHandle_t, cusolverEigMode_t, int, int m, int n, const T*, int, const T*, const T*, int, const T*,    \
      int, int* words, gesvdjInfo_t) {                                                                               \
    MAY_FAIL(cusolverStatus_t);                                                                                      \
    *words = m * n + n * n;                                                                                          \
    return CUSOLVER_STATUS_SUCCESS;                                                                                  \
  }                                                                                                                  \
  SHIM_API cusolverStatus_t cusolverDn##letter##gesvdj(                                                              \
      cusolverDnHandle_t h, cusolverEigMode_t jobz, int econ, int m, int n, T* a, int lda, T* s, T* u, int ldu, T* v, \
      int ldv, T* work, int words, int* info, gesvdjInfo_t params) {                                                 \
    MAY_FAIL(cusolverStatus_t);                                                                                      \
    if (!shim::usable(h, params) || jobz != CUSOLVER_EIG_MODE_VECTOR || econ != 1 || m < 1 || n < 1 || lda != m ||   \
        ldu != m || ldv != n || words < m * n + n * n)                                                               \
      return CUSOLVER_STATUS_INVALID_VALUE;                                                                          \
    shim::svd(h->stream, m, n, a, s, u, v, work, info);                                                              \
    return CUSOLVER_STATUS_SUCCESS;                                                                                  \
  }
SHIM_OF_TYPE(D, double)
SHIM_OF_TYPE(S, float)
