// What csrc/cuda needs of CUDA's headers, or those headers themselves (SHIM_REAL_HEADERS), to hold the shim to them.
#pragma once

#ifdef SHIM_REAL_HEADERS
#include <cublas_v2.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <cusolverDn.h>
#undef __global__
#undef __device__
#undef __shared__
#else

#include <cstddef>
#include <cstdint>
#include <cstring>

struct uint3 { unsigned x, y, z; };

enum cudaError_t { cudaSuccess = 0, cudaErrorMemoryAllocation = 2, cudaErrorInvalidConfiguration = 9 };
enum cudaMemcpyKind { cudaMemcpyDeviceToDevice = 3 };
enum cudaDataType { CUDA_R_32F = 0, CUDA_R_64F = 1 };
enum { cudaEventDisableTiming = 2 };
using cudaStream_t = struct CUstream_st*;
using cudaEvent_t = struct CUevent_st*;

enum cublasStatus_t { CUBLAS_STATUS_SUCCESS = 0, CUBLAS_STATUS_ALLOC_FAILED = 3, CUBLAS_STATUS_INVALID_VALUE = 7 };
enum cublasOperation_t { CUBLAS_OP_N = 0, CUBLAS_OP_T = 1 };
enum cublasFillMode_t { CUBLAS_FILL_MODE_LOWER = 0, CUBLAS_FILL_MODE_UPPER = 1 };
enum cublasMath_t { CUBLAS_DEFAULT_MATH = 0, CUBLAS_PEDANTIC_MATH = 2 };
using cublasHandle_t = struct cublasContext*;

enum cusolverStatus_t { CUSOLVER_STATUS_SUCCESS = 0, CUSOLVER_STATUS_ALLOC_FAILED = 2, CUSOLVER_STATUS_INVALID_VALUE = 3 };
enum cusolverEigMode_t { CUSOLVER_EIG_MODE_NOVECTOR = 0, CUSOLVER_EIG_MODE_VECTOR = 1 };
using cusolverDnHandle_t = struct cusolverDnContext*;
using cusolverDnParams_t = struct cusolverDnParams*;
using gesvdjInfo_t = struct gesvdjInfo*;

struct __half { uint16_t bits; };
struct __nv_bfloat16 { uint16_t bits; };
inline float __bfloat162float(__nv_bfloat16 x) {
  const uint32_t bits = uint32_t{x.bits} << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof wide);
  return wide;
}
inline float __half2float(__half x) {
  const int exponent = x.bits >> 10 & 31, fraction = x.bits & 1023;
  const float size = exponent == 31  ? (fraction ? __builtin_nanf("") : __builtin_inff())
                     : exponent == 0 ? __builtin_ldexpf(static_cast<float>(fraction), -24)
                                     : __builtin_ldexpf(static_cast<float>(fraction + 1024), exponent - 25);
  return x.bits >> 15 ? -size : size;
}
#endif
#include <math.h>

#define __global__
#define __device__
#define __shared__ static  // CUDA blocks run one at a time
#define threadIdx shim::thread_index()
#define blockIdx shim::block_index()
#define blockDim shim::block_size()
#define __syncthreads() static_cast<void>(shim::barrier(0))
#define __syncthreads_or(vote) shim::barrier(vote)
