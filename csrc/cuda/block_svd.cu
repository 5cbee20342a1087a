// factor_blocks on a CUDA device: Gram matrices by cuBLAS and their eigenproblems, or Jacobi SVDs, by cuSOLVER.
#include "eigensolver.cuh"

namespace lasertri {
namespace {

constexpr int64_t kPanelElements = 1 << 24;  // 128 MiB in FP64
constexpr int64_t kNarrowest = 32;           // columns of a panel, however many blocks there are
constexpr int64_t kMostBlocks = 32768;       // in a batch: cuSOLVER refuses 65,536

int as_int(int64_t value) { return static_cast<int>(value); }  // check() saw that sides fit

// Memory and solver for batches of `count` blocks.
template <typename T>
struct GramPlan {
  const int64_t count, width;
  Eigensolver<T> solver;
  T *panel{}, *product{}, *gram{}, *eigenvalues{};
  int* info{};

  GramPlan(const Call<T>& call, int64_t blocks)
      : count(blocks),
        width(std::min(call.sizes.columns, std::max(kNarrowest, kPanelElements / (blocks * call.sizes.rows)))),
        solver(call, blocks, call.sizes.blocks % blocks) {}

  int64_t take_memory(const Sizes& sizes, Arena arena) {
    panel = arena.take<T>(count * sizes.rows * width);
    product = arena.take<T>(count * sizes.length * width);
    eigenvalues = arena.take<T>(count * sizes.rows);
    info = arena.take<int>(count);
    if (sizes.length < sizes.rows) gram = arena.take<T>(count * sizes.rows * sizes.rows);
    solver.take_memory(arena);
    return arena.used();
  }
};

// Largest batch whose memory stays within the bound; one block where none does. A batch whose squares alone exceed it
// is not asked for: cuSOLVER refuses sizes that it cannot count.
template <typename T>
GramPlan<T> plan_within(const Call<T>& call, int64_t workspace) {
  const int64_t square = call.sizes.rows * call.sizes.rows * static_cast<int64_t>(sizeof(T));
  const int64_t most = std::min({call.sizes.blocks, kMostBlocks, std::max<int64_t>(1, workspace / square)});
  for (int64_t count = most;; count = (count + 1) / 2) {
    GramPlan<T> plan(call, count);
    if (count == 1 || plan.take_memory(call.sizes, Arena()) <= workspace) return plan;
  }
}

template <typename T>
void gram_batch(const Call<T>& call, GramPlan<T>& plan, int64_t first, int64_t count) {
  const int64_t s = call.sizes.rows, l = call.sizes.columns, r = call.sizes.length;
  T* const vectors = call.vectors + first * r * s;
  T* const sigma = call.sigma + first * r;
  T* const gram = plan.gram ? plan.gram : vectors;  // r = s: the solver overwrites it with all eigenvectors
  const cublasHandle_t blas = call.handles.blas.get();
  const T zero = 0, one = 1;

  // A panel is copied along the dimension that is contiguous in the input. In column-major words it is X with
  //   by_rows: memory [s, w], X is w x s with ld = w, panel = Xᵀ;   else: memory [w, s], X is s x w, ld = s, panel = X.
  const bool by_rows = call.blocks.stride(2) <= call.blocks.stride(1);
  const cublasOperation_t as_panel = by_rows ? CUBLAS_OP_T : CUBLAS_OP_N;
  const cublasOperation_t as_transpose = by_rows ? CUBLAS_OP_N : CUBLAS_OP_T;

  for (int64_t start = 0; start < l; start += plan.width) {
    const int64_t w = std::min(plan.width, l - start), ld = by_rows ? w : s;
    call.widen_panel(first, count, start, w, by_rows, plan.panel);
    // gram (s x s) += panel (s x w) panelᵀ (w x s)
    LASERTRI_CALL(
        gemm_strided, blas, as_panel, as_transpose, as_int(s), as_int(s), as_int(w), &one, plan.panel, as_int(ld),
        s * w, plan.panel, as_int(ld), s * w, start == 0 ? &zero : &one, gram, as_int(s), s * s, as_int(count));
  }
  // Its diagonal, every (s + 1)-th value, has each row's sum of squares, and so any NaN or Inf of the row.
  refuse_nonfinite<T><<<static_cast<unsigned>(count), kThreads, 0, call.stream>>>(
      gram, s * s, s + 1, s, gram, s * s, call.status + first);
  LASERTRI_LAUNCHED("refuse_nonfinite");

  plan.solver.solve(gram, plan.eigenvalues, plan.info, count);
  if (plan.gram)  // of s eigenvectors the last r, which are contiguous
    for (int64_t b = 0; b < count; ++b)
      LASERTRI_CALL(
          cudaMemcpyAsync, vectors + b * r * s, gram + b * s * s + (s - r) * s, r * s * sizeof(T),
          cudaMemcpyDeviceToDevice, call.stream);

  for (int64_t start = 0; start < l; start += plan.width) {
    const int64_t w = std::min(plan.width, l - start), ld = by_rows ? w : s;
    if (plan.width < l) call.widen_panel(first, count, start, w, by_rows, plan.panel);  // else it is still there
    // product (w x r, column-major: line j is panelᵀ q_j) = panelᵀ (w x s) Q (s x r)
    LASERTRI_CALL(
        gemm_strided, blas, as_transpose, CUBLAS_OP_N, as_int(w), as_int(r), as_int(s), &one, plan.panel, as_int(ld),
        s * w, vectors, as_int(s), r * s, &zero, plan.product, as_int(w), w * r, as_int(count));
    line_sums<false, T><<<static_cast<unsigned>(count * r), kThreads, 0, call.stream>>>(
        plan.product, w, sigma, start > 0);
    LASERTRI_LAUNCHED("line_sums");
  }
  finish<T><<<static_cast<unsigned>(count), kThreads, 0, call.stream>>>(
      sigma, plan.eigenvalues, plan.info, s, r, std::is_same_v<T, double>, call.status + first);
  LASERTRI_LAUNCHED("finish");
}

template <typename T>
void by_gram(const Call<T>& call, int64_t workspace) {
  GramPlan<T> plan = plan_within(call, workspace);
  const Tensor memory = call.allocate(plan.take_memory(call.sizes, Arena()));
  plan.take_memory(call.sizes, Arena(static_cast<char*>(memory.mutable_data_ptr())));
  for (int64_t first = 0; first < call.sizes.blocks; first += plan.count)
    gram_batch(call, plan, first, std::min(plan.count, call.sizes.blocks - first));
}

cusolverStatus_t jacobi_size(
    cusolverDnHandle_t h, int m, int n, const double* a, const double* s, const double* u, const double* v, int* words,
    gesvdjInfo_t params) {
  return cusolverDnDgesvdj_bufferSize(h, CUSOLVER_EIG_MODE_VECTOR, 1, m, n, a, m, s, u, m, v, n, words, params);
}
cusolverStatus_t jacobi_size(
    cusolverDnHandle_t h, int m, int n, const float* a, const float* s, const float* u, const float* v, int* words,
    gesvdjInfo_t params) {
  return cusolverDnSgesvdj_bufferSize(h, CUSOLVER_EIG_MODE_VECTOR, 1, m, n, a, m, s, u, m, v, n, words, params);
}
cusolverStatus_t jacobi(
    cusolverDnHandle_t h, int m, int n, double* a, double* s, double* u, double* v, double* work, int words, int* info,
    gesvdjInfo_t params) {
  return cusolverDnDgesvdj(h, CUSOLVER_EIG_MODE_VECTOR, 1, m, n, a, m, s, u, m, v, n, work, words, info, params);
}
cusolverStatus_t jacobi(
    cusolverDnHandle_t h, int m, int n, float* a, float* s, float* u, float* v, float* work, int words, int* info,
    gesvdjInfo_t params) {
  return cusolverDnSgesvdj(h, CUSOLVER_EIG_MODE_VECTOR, 1, m, n, a, m, s, u, m, v, n, work, words, info, params);
}

// A block's memory [s, l] is column-major X = Aᵀ, l x s: X = U Σ Vᵀ makes A = V Σ Uᵀ, so the basis is V, s x r in
// column-major order, which is how a block of `vectors` lies.
template <typename T>
void by_svd(const Call<T>& call) {
  const int64_t s = call.sizes.rows, l = call.sizes.columns, r = call.sizes.length, blocks = call.sizes.blocks;
  const cusolverDnHandle_t solver = call.handles.solver(0);
  const auto params = open<JacobiParams>(cusolverDnCreateGesvdjInfo, "cusolverDnCreateGesvdjInfo");
  int words = 0;
  LASERTRI_CALL(
      jacobi_size, solver, as_int(l), as_int(s), call.vectors, call.sigma, call.vectors, call.vectors, &words,
      params.get());
  struct Memory { T *matrix, *u, *sums, *work; int* info; };
  const auto take = [&](Arena& arena) {
    return Memory{arena.take<T>(s * l), arena.take<T>(l * r), arena.take<T>(s), arena.take<T>(words),
                  arena.take<int>(blocks)};
  };
  Arena measured;
  take(measured);
  const Tensor memory = call.allocate(measured.used());
  Arena arena(static_cast<char*>(memory.mutable_data_ptr()));
  const Memory at = take(arena);

  for (int64_t b = 0; b < blocks; ++b) {
    call.widen_panel(b, 1, 0, l, /*by_rows=*/true, at.matrix);
    line_sums<true, T><<<static_cast<unsigned>(s), kThreads, 0, call.stream>>>(at.matrix, l, at.sums, false);
    LASERTRI_LAUNCHED("line_sums");
    refuse_nonfinite<T><<<1, kThreads, 0, call.stream>>>(at.sums, 0, 1, s, at.matrix, s * l, call.status + b);
    LASERTRI_LAUNCHED("refuse_nonfinite");
    LASERTRI_CALL(
        jacobi, solver, as_int(l), as_int(s), at.matrix, call.sigma + b * r, at.u, call.vectors + b * r * s, at.work,
        words, at.info + b, params.get());
  }
  note_failures<<<static_cast<unsigned>((blocks + kThreads - 1) / kThreads), kThreads, 0, call.stream>>>(
      at.info, blocks, call.status);
  LASERTRI_LAUNCHED("note_failures");
}

template <typename T>
void factor(const Tensor& blocks, const Sizes& sizes, Results& results, int64_t workspace) {
  const Call<T> call(blocks, sizes, results);
  if (sizes.direct)
    by_svd(call);
  else
    by_gram(call, workspace);
}

std::tuple<Tensor, Tensor, Tensor> factor_blocks(Tensor blocks, std::string method, bool fp64, int64_t workspace) {
  const Sizes sizes = check(blocks, method, /*on_cuda=*/true);
  const torch::stable::accelerator::DeviceGuard guard(blocks.get_device_index());
  Results results = make_results(blocks, sizes, fp64 ? ScalarType::Double : ScalarType::Float);
  if (!sizes.empty()) {
    if (fp64)
      factor<double>(blocks, sizes, results, workspace);
    else
      factor<float>(blocks, sizes, results, workspace);
  }
  return results.get();
}

}  // namespace
}  // namespace lasertri

STABLE_TORCH_LIBRARY_IMPL(TORCH_EXTENSION_NAME, CUDA, library) {
  library.impl("factor_blocks", TORCH_BOX(&lasertri::factor_blocks));
}
