// factor_blocks on the CPU: torch's own BLAS and LAPACK, one block to a thread where there are enough of them.
//
// Workers write results through plain pointers: in-place ops on tensors of an inference mode, which is a thread's own,
// would be refused.
#include "../block_svd.h"

#include <array>
#include <cmath>
#include <vector>

namespace lasertri {
namespace {

using torch::stable::detail::from;
using torch::stable::detail::to;

constexpr int64_t kPanelElements = 1 << 20;  // 8 MiB in FP64: enough for full GEMM speed, once per thread

// Σ f(x): eight running sums, which the compiler turns into vector instructions without reordering anything else.
template <typename T, typename F>
T sum_of(const T* values, int64_t count, F f) {
  std::array<T, 8> lanes{};
  int64_t i = 0;
  for (; i + 8 <= count; i += 8)
    for (int64_t lane = 0; lane < 8; ++lane) lanes[lane] += f(values[i + lane]);
  for (; i < count; ++i) lanes[0] += f(values[i]);
  T sum = 0;
  for (const T lane : lanes) sum += lane;
  return sum;
}

// out = a b, [m, k] by [k, n]; a view of a larger matrix may be written.
void multiply(const Tensor& out, const Tensor& a, const Tensor& b) {
  std::array<StableIValue, 3> stack{from(a), from(b), from(out)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mm", "out", stack.data(), TORCH_ABI_VERSION));
  to<Tensor>(stack[0]);  // the second handle of `out`, released
}

// Columns start:start + width in the compute dtype; a view where that is the block's own.
Tensor widened(Tensor block, int64_t start, int64_t width, ScalarType dtype) {
  return torch::stable::to(torch::stable::narrow(block, 1, start, width), dtype);
}

template <typename Visit>
void for_panels(const Tensor& block, ScalarType dtype, Visit visit) {
  const int64_t columns = block.size(1), width = std::max<int64_t>(1, kPanelElements / block.size(0));
  for (int64_t start = 0; start < columns; start += width)
    visit(widened(block, start, std::min(width, columns - start), dtype), start == 0);
}

// Lower triangle of the product, which is all that the eigensolver reads, in at most four bands of rows.
void lower_square(Tensor out, Tensor panel) {
  const int64_t rows = panel.size(0), band = std::max<int64_t>(256, (rows + 3) / 4);
  for (int64_t start = 0; start < rows; start += band) {
    const int64_t height = std::min(band, rows - start);
    Tensor into = torch::stable::narrow(out, 0, start, height);
    multiply(
        torch::stable::narrow(into, 1, 0, start + height),
        torch::stable::narrow(panel, 0, start, height),
        torch::stable::transpose(torch::stable::narrow(panel, 0, 0, start + height), 0, 1));
  }
}

// Where one block's results go: r vectors of s values, r values of sigma, one status.
template <typename T>
struct Place {
  T* vectors;
  T* sigma;
  int32_t* status;
  int64_t rows, length;

  void leave_empty(int32_t cause) const {
    std::fill_n(vectors, length * rows, T(0));
    std::fill_n(sigma, length, T(0));
    *status = cause;
  }
  // Columns first:first + r of a matrix with s rows become the vectors.
  void take_columns(const Tensor& matrix, int64_t first) const {
    const T* values = matrix.const_data_ptr<T>();
    const int64_t down = matrix.stride(0), across = matrix.stride(1);
    torch::stable::parallel_for(0, length, 64, [&](int64_t begin, int64_t end) {
      for (int64_t j = begin; j < end; ++j)
        for (int64_t i = 0; i < rows; ++i) vectors[j * rows + i] = values[i * down + (first + j) * across];
    });
  }
};

// A call of torch's LAPACK that returns false where it failed: the shim gives no info code, so a failure to allocate
// is reported as one to converge (torch writes its own text to standard error).
template <size_t N>
bool solved(const char* op, std::array<StableIValue, N>& stack) {
  return torch_call_dispatcher(op, "", stack.data(), TORCH_ABI_VERSION) == TORCH_SUCCESS;
}

template <typename T>
Tensor gram_matrix(const Tensor& block, ScalarType dtype) {
  const int64_t rows = block.size(0);
  Tensor gram = torch::stable::new_zeros(block, {rows, rows}, dtype);
  Tensor partial = gram;
  for_panels(block, dtype, [&](const Tensor& panel, bool first) {
    if (first) return lower_square(gram, panel);
    if (partial.get() == gram.get()) partial = torch::stable::new_zeros(block, {rows, rows}, dtype);
    lower_square(partial, panel);
    T* sum = gram.mutable_data_ptr<T>();
    const T* term = partial.const_data_ptr<T>();
    torch::stable::parallel_for(0, rows * rows, 1 << 15, [=](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) sum[i] += term[i];
    });
  });
  return gram;
}

template <typename T>
void by_gram(const Tensor& block, Tensor vectors, ScalarType dtype, const Place<T>& out) {
  const int64_t rows = out.rows, length = out.length;
  const Tensor gram = gram_matrix<T>(block, dtype);
  const T* squares = gram.const_data_ptr<T>();
  for (int64_t i = 0; i < rows; ++i)  // a row's sum of squares: any NaN or Inf of the row is in it
    if (!std::isfinite(squares[i * (rows + 1)])) return out.leave_empty(kNotFinite);

  std::array<StableIValue, 2> stack{from(gram), from(std::string("L"))};
  if (!solved("aten::linalg_eigh", stack)) return out.leave_empty(kNotConverged);
  const Tensor eigenvalues = to<Tensor>(stack[0]), eigenvectors = to<Tensor>(stack[1]);
  out.take_columns(eigenvectors, rows - length);  // the largest come last

  std::vector<T> norms(length, T(0));
  for_panels(block, dtype, [&](const Tensor& panel, bool) {
    const Tensor product = torch::stable::contiguous(torch::stable::matmul(vectors, panel));  // [r, w]
    const T* values = product.template const_data_ptr<T>();
    const int64_t width = product.size(1);
    torch::stable::parallel_for(0, length, 16, [&](int64_t begin, int64_t end) {
      for (int64_t j = begin; j < end; ++j) norms[j] += sum_of(values + j * width, width, [](T x) { return x * x; });
    });
  });
  const T largest = *std::max_element(norms.begin(), norms.end());
  const T* lambda = eigenvalues.const_data_ptr<T>() + (rows - length);
  for (int64_t j = 0; j < length; ++j) {
    out.sigma[j] = std::sqrt(norms[j]);
    if (dtype == ScalarType::Double && disagrees(lambda[j], norms[j], largest, length)) *out.status = kUnresolved;
  }
}

template <typename T>
void by_svd(const Tensor& block, ScalarType dtype, const Place<T>& out) {
  const Tensor matrix = torch::stable::contiguous(torch::stable::to(block, dtype));
  const T nothing = sum_of(matrix.const_data_ptr<T>(), matrix.numel(), [](T x) { return x * T(0); });
  if (!(nothing == T(0))) return out.leave_empty(kNotFinite);  // NaN: it has a NaN or an Inf for a factor

  std::array<StableIValue, 3> stack{from(matrix), from(false), from(std::nullopt)};
  if (!solved("aten::linalg_svd", stack)) return out.leave_empty(kNotConverged);
  const Tensor u = to<Tensor>(stack[0]), sigma = to<Tensor>(stack[1]);
  to<Tensor>(stack[2]);  // the right singular vectors, released
  out.take_columns(u, 0);
  std::copy_n(sigma.const_data_ptr<T>(), out.length, out.sigma);
}

template <typename T>
void factor(const Tensor& blocks, const Sizes& sizes, Results& results, ScalarType dtype) {
  T* vectors = results.vectors.mutable_data_ptr<T>();
  T* sigma = results.sigma.mutable_data_ptr<T>();
  int32_t* status = results.status.mutable_data_ptr<int32_t>();
  const auto factor_range = [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const Place<T> out{
          vectors + b * sizes.length * sizes.rows, sigma + b * sizes.length, status + b, sizes.rows, sizes.length};
      const Tensor block = torch::stable::select(blocks, 0, b);
      if (sizes.direct)
        by_svd<T>(block, dtype, out);
      else
        by_gram<T>(block, torch::stable::select(results.vectors, 0, b), dtype, out);
    }
  };
  // Fewer blocks than threads: one after the other, each with all threads inside BLAS and LAPACK.
  if (sizes.blocks >= static_cast<int64_t>(torch::stable::get_num_threads()))
    torch::stable::parallel_for(0, sizes.blocks, 1, factor_range);
  else
    factor_range(0, sizes.blocks);
}

std::tuple<Tensor, Tensor, Tensor> factor_blocks(Tensor blocks, std::string method, bool fp64, int64_t /*workspace*/) {
  const Sizes sizes = check(blocks, method, /*on_cuda=*/false);
  const ScalarType dtype = fp64 ? ScalarType::Double : ScalarType::Float;
  Results results = make_results(blocks, sizes, dtype);
  if (!sizes.empty()) {
    if (fp64)
      factor<double>(blocks, sizes, results, dtype);
    else
      factor<float>(blocks, sizes, results, dtype);
  }
  return results.get();
}

}  // namespace
}  // namespace lasertri

STABLE_TORCH_LIBRARY_IMPL(TORCH_EXTENSION_NAME, CPU, library) {
  library.impl("factor_blocks", TORCH_BOX(&lasertri::factor_blocks));
}
