// What both libraries share: the op's arguments and results, and when a block's result is not to be trusted.
//
// factor_blocks(blocks [B, s, l], method, fp64, workspace) -> basis [B, s, r], sigma [B, r], status [B], r = min(s, l).
// The basis holds left singular vectors. Its memory is [B, r, s]: each vector is contiguous, as LAPACK and cuSOLVER
// write it. Vectors come in the solver's order; the caller sorts them with sigma.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <sstream>
#include <stdexcept>
#include <string>
#include <tuple>

#ifdef __CUDACC__
#define LASERTRI_HOST_DEVICE __host__ __device__
#else
#define LASERTRI_HOST_DEVICE
#endif

// Where the op is registered. Of a kernel of the hub each build has a name of its own.
#ifndef TORCH_EXTENSION_NAME
#define TORCH_EXTENSION_NAME lasertri
#endif

namespace lasertri {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Bits of a block's status; ops/cuda.py has the same.
constexpr int32_t kNotFinite = 1;
constexpr int32_t kNotConverged = 2;
constexpr int32_t kUnresolved = 4;

// Relative mismatch of an eigenvalue and its Rayleigh quotient beyond which a block is not resolved by its Gram matrix.
// Over Gaussian, spiked and power-law blocks of 16 to 512 rows, three seeds each, it was at most 2e-8 (a square
// Gaussian block; 2e-9 for power laws) up to condition 1e4, 4e-8 to 4e-7 at 1e5, and at least 7e-6 at 1e6.
constexpr double kTolerance = 1e-6;

// Whether a singular value that a gradient may be asked of (above sqrt(r eps) of the largest, as in
// ops/reference.py) disagrees with its eigenvalue. `square` and `largest` are squared Rayleigh norms.
LASERTRI_HOST_DEVICE inline bool disagrees(double eigenvalue, double square, double largest, int64_t length) {
  const double floor = static_cast<double>(length) * 2.220446049250313e-16 * largest;
  const double mismatch = eigenvalue > square ? eigenvalue - square : square - eigenvalue;
  return square > floor && mismatch > kTolerance * square;
}

struct Sizes {
  int64_t blocks, rows, columns, length;  // B, s, l, r = min(s, l)
  bool direct;
  bool empty() const { return blocks == 0 || length == 0; }
};

template <typename... Words>
[[noreturn]] void fail(const Words&... words) {
  std::ostringstream sentence;
  (sentence << ... << words);
  throw std::runtime_error(sentence.str());
}

inline Sizes check(const Tensor& blocks, const std::string& method, bool on_cuda) {
  if (blocks.is_cuda() != on_cuda)
    fail("expected blocks on a ", on_cuda ? "CUDA device" : "CPU", ", got blocks on another device; move them there");
  if (blocks.dim() != 3)
    fail("expected blocks [B, short side, long side], got ", blocks.dim(), " dimensions; a single block needs B = 1");
  const ScalarType dtype = blocks.scalar_type();
  if (dtype != ScalarType::Float && dtype != ScalarType::Double && dtype != ScalarType::BFloat16 &&
      dtype != ScalarType::Half)
    fail("expected blocks in float32, float64, bfloat16 or float16, got ", dtype, "; convert them first");
  if (method != "gram" && method != "direct")
    fail("expected the method 'gram' or 'direct', got '", method, "'; 'auto' is decided by the caller");
  const int64_t rows = blocks.size(1), columns = blocks.size(2);
  if (std::max(rows, columns) > std::numeric_limits<int32_t>::max())
    fail("expected sides that fit 32 bits, got ", rows, " and ", columns, "; split the matrix into more blocks");
  return {blocks.size(0), rows, columns, std::min(rows, columns), method == "direct"};
}

struct Results {
  Tensor vectors, sigma, status;  // [B, r, s], [B, r], [B]
  std::tuple<Tensor, Tensor, Tensor> get() { return {torch::stable::transpose(vectors, 1, 2), sigma, status}; }
};

inline Results make_results(const Tensor& blocks, const Sizes& sizes, ScalarType dtype) {
  using torch::stable::new_empty;
  return {
      new_empty(blocks, {sizes.blocks, sizes.length, sizes.rows}, dtype),
      new_empty(blocks, {sizes.blocks, sizes.length}, dtype),
      torch::stable::new_zeros(blocks, {sizes.blocks}, ScalarType::Int)};
}

}  // namespace lasertri
