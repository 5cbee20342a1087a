// One call of factor_blocks on a device: where its tensors and handles are, and the steps that both methods share.
#pragma once

#include "handles.h"
#include "kernels.cuh"

#include <vector>

namespace lasertri {

template <typename T>
constexpr cudaDataType kType = std::is_same_v<T, double> ? CUDA_R_64F : CUDA_R_32F;

inline cublasStatus_t gemm_strided(
    cublasHandle_t h, cublasOperation_t a_op, cublasOperation_t b_op, int m, int n, int k, const double* alpha,
    const double* a, int lda, long long a_step, const double* b, int ldb, long long b_step, const double* beta,
    double* c, int ldc, long long c_step, int count) {
  return cublasDgemmStridedBatched(
      h, a_op, b_op, m, n, k, alpha, a, lda, a_step, b, ldb, b_step, beta, c, ldc, c_step, count);
}
inline cublasStatus_t gemm_strided(
    cublasHandle_t h, cublasOperation_t a_op, cublasOperation_t b_op, int m, int n, int k, const float* alpha,
    const float* a, int lda, long long a_step, const float* b, int ldb, long long b_step, const float* beta, float* c,
    int ldc, long long c_step, int count) {
  return cublasSgemmStridedBatched(
      h, a_op, b_op, m, n, k, alpha, a, lda, a_step, b, ldb, b_step, beta, c, ldc, c_step, count);
}

// Pieces of one allocation. Made twice: without memory to learn its size, then with it to hand the pieces out.
class Arena {
 public:
  explicit Arena(char* start = nullptr) : start_(start) {}
  template <typename T>
  T* take(int64_t count) {
    char* piece = start_ ? start_ + used_ : nullptr;
    used_ += (count * static_cast<int64_t>(sizeof(T)) + 255) / 256 * 256;
    return reinterpret_cast<T*>(piece);
  }
  int64_t used() const { return used_; }

 private:
  char* start_;
  int64_t used_ = 0;
};

template <typename T>
struct Call {
  const Tensor& blocks;
  const Sizes sizes;
  const int32_t device;
  const cudaStream_t stream;
  Handles& handles;
  T* const vectors;       // [B, r, s], each block a column-major s x r matrix
  T* const sigma;         // [B, r]
  int32_t* const status;  // [B]

  Call(const Tensor& from, const Sizes& s, Results& results)
      : blocks(from),
        sizes(s),
        device(from.get_device_index()),
        stream(current_stream(device)),
        handles(Handles::of(device)),
        vectors(results.vectors.mutable_data_ptr<T>()),
        sigma(results.sigma.mutable_data_ptr<T>()),
        status(results.status.mutable_data_ptr<int32_t>()) {
    LASERTRI_CALL(cublasSetStream, handles.blas.get(), stream);
    LASERTRI_CALL(cusolverDnSetStream, handles.solver(0), stream);
    // FP32 is meant: no TF32, whatever the environment asks of the default mode.
    LASERTRI_CALL(
        cublasSetMathMode, handles.blas.get(),
        std::is_same_v<T, float> ? CUBLAS_PEDANTIC_MATH : CUBLAS_DEFAULT_MATH);
  }

  Tensor allocate(int64_t bytes) const {
    return torch::stable::new_empty(blocks, {bytes}, ScalarType::Byte);
  }

  // Columns start:start + width of blocks first:first + count, in T: [count, s, width] if by_rows, else
  // [count, width, s].
  void widen_panel(int64_t first, int64_t count, int64_t start, int64_t width, bool by_rows, T* out) const {
    switch (blocks.scalar_type()) {
      case ScalarType::Double: return widen_from<double>(first, count, start, width, by_rows, out);
      case ScalarType::Float: return widen_from<float>(first, count, start, width, by_rows, out);
      case ScalarType::Half: return widen_from<__half>(first, count, start, width, by_rows, out);
      default: return widen_from<__nv_bfloat16>(first, count, start, width, by_rows, out);  // check() saw the dtype
    }
  }

 private:
  template <typename In>
  void widen_from(int64_t first, int64_t count, int64_t start, int64_t width, bool by_rows, T* out) const {
    const int64_t block_step = blocks.stride(0), row_step = blocks.stride(1), column_step = blocks.stride(2);
    const In* in = static_cast<const In*>(blocks.const_data_ptr()) + first * block_step + start * column_step;
    const int64_t outer = by_rows ? sizes.rows : width, inner = by_rows ? width : sizes.rows;
    widen<In, T><<<static_cast<unsigned>(count * outer), kThreads, 0, stream>>>(
        in, block_step, by_rows ? row_step : column_step, by_rows ? column_step : row_step, out, outer, inner);
    LASERTRI_LAUNCHED("widen");
  }
};

}  // namespace lasertri
