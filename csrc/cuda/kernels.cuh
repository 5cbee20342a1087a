// The small kernels around cuBLAS and cuSOLVER. Sums are made in a fixed order: the same input gives the same bits.
#pragma once

#include "../block_svd.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace lasertri {

constexpr int kThreads = 256;

template <typename T>
__device__ T as(double x) { return static_cast<T>(x); }
template <typename T>
__device__ T as(float x) { return static_cast<T>(x); }
template <typename T>
__device__ T as(__half x) { return static_cast<T>(__half2float(x)); }
template <typename T>
__device__ T as(__nv_bfloat16 x) { return static_cast<T>(__bfloat162float(x)); }

// out [count, outer, inner], contiguous, from in[i * stride_block + j * stride_outer + k * stride_inner].
// One CUDA block per (i, j).
template <typename In, typename T>
__global__ void widen(
    const In* in, int64_t stride_block, int64_t stride_outer, int64_t stride_inner, T* out, int64_t outer, int64_t inner) {
  const int64_t line = blockIdx.x, i = line / outer, j = line % outer;
  const In* from = in + i * stride_block + j * stride_outer;
  T* to = out + line * inner;
  for (int64_t k = threadIdx.x; k < inner; k += blockDim.x) to[k] = as<T>(from[k * stride_inner]);
}

// sums[line] (+)= Σ values[line, :]² over contiguous lines; with Finite Σ 0·values, which is 0 or NaN.
// One CUDA block of kThreads per line: strided partial sums, then a tree, no atomics.
template <bool Finite, typename T>
__global__ void line_sums(const T* values, int64_t width, T* sums, bool add) {
  __shared__ T partial[kThreads];
  const int64_t line = blockIdx.x;
  const T* from = values + line * width;
  T sum = 0;
  for (int64_t k = threadIdx.x; k < width; k += kThreads) sum += from[k] * (Finite ? T(0) : from[k]);
  partial[threadIdx.x] = sum;
  __syncthreads();
  for (int half = kThreads / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) partial[threadIdx.x] += partial[threadIdx.x + half];
    __syncthreads();
  }
  if (threadIdx.x == 0) sums[line] = add ? sums[line] + partial[0] : partial[0];
}

// A block with a value among values[i * stride_block + j * stride] (j < count) that is not finite gets kNotFinite, and
// its matrix [size] becomes zeros: no solver is given a NaN. One CUDA block per i.
template <typename T>
__global__ void refuse_nonfinite(
    const T* values, int64_t stride_block, int64_t stride, int64_t count, T* matrix, int64_t size, int32_t* status) {
  const int64_t i = blockIdx.x;
  int bad = 0;
  for (int64_t j = threadIdx.x; j < count; j += blockDim.x) bad |= !isfinite(values[i * stride_block + j * stride]);
  if (!__syncthreads_or(bad)) return;  // also the barrier between reading values of this matrix and clearing it
  for (int64_t k = threadIdx.x; k < size; k += blockDim.x) matrix[i * size + k] = 0;
  if (threadIdx.x == 0) status[i] |= kNotFinite;
}

// sigma [count, length] holds squared Rayleigh norms and becomes their roots; eigenvalues[i * rows + rows - length + j]
// belongs to sigma[i, j]. The solver's info and, in FP64, a disagreement of the two become status bits.
// One CUDA block per i; sigma is re-read after a barrier.
template <typename T>
__global__ void finish(
    T* sigma, const T* eigenvalues, const int* info, int64_t rows, int64_t length, bool compared, int32_t* status) {
  __shared__ T maxima[kThreads];
  const int64_t i = blockIdx.x;
  T* square = sigma + i * length;
  const T* lambda = eigenvalues + i * rows + (rows - length);
  T largest = 0;
  for (int64_t j = threadIdx.x; j < length; j += kThreads) largest = square[j] > largest ? square[j] : largest;
  maxima[threadIdx.x] = largest;
  __syncthreads();
  for (int half = kThreads / 2; half > 0; half /= 2) {
    if (threadIdx.x < half && maxima[threadIdx.x + half] > maxima[threadIdx.x])
      maxima[threadIdx.x] = maxima[threadIdx.x + half];
    __syncthreads();
  }
  int bad = 0;
  for (int64_t j = threadIdx.x; j < length; j += kThreads) {
    bad |= compared && disagrees(lambda[j], square[j], maxima[0], length);
    square[j] = sqrt(square[j]);  // read by this thread alone since the barrier
  }
  bad = __syncthreads_or(bad);
  if (threadIdx.x == 0) status[i] |= (info[i] != 0 ? kNotConverged : 0) | (bad ? kUnresolved : 0);
}

static __global__ void note_failures(const int* info, int64_t count, int32_t* status) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < count && info[i] != 0) status[i] |= kNotConverged;
}

}  // namespace lasertri
