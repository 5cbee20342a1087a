// Symmetric eigenproblems of equal size, in place: one batched call, or a loop over a few streams. The loop runs in one
// host thread: where cusolverDnXsyevd itself waits for the device, which no device has shown yet, streams do not overlap.
#pragma once

#include "call.cuh"

namespace lasertri {

// Streams that begin after what `main` holds so far, and that `main` waits for once they are joined.
class Fork {
 public:
  Fork(int32_t device, cudaStream_t main, int64_t count) : main_(main) {
    const Event ready = make_event();
    LASERTRI_CALL(cudaEventRecord, ready.get(), main);
    for (int64_t i = 0; i < count; ++i) {
      streams_.push_back(pool_stream(device));
      done_.push_back(make_event());
      LASERTRI_CALL(cudaStreamWaitEvent, streams_.back(), ready.get(), 0);
    }
  }
  Fork(const Fork&) = delete;
  Fork& operator=(const Fork&) = delete;
  // After an exception too, or memory would be handed out again while a stream still uses it.
  ~Fork() {
    if (joined_) return;
    for (size_t i = 0; i < done_.size(); ++i) {
      (void)cudaEventRecord(done_[i].get(), streams_[i]);
      (void)cudaStreamWaitEvent(main_, done_[i].get(), 0);
    }
  }
  cudaStream_t operator[](int64_t i) const { return streams_[i]; }
  void join() {
    for (size_t i = 0; i < streams_.size(); ++i) {
      LASERTRI_CALL(cudaEventRecord, done_[i].get(), streams_[i]);
      LASERTRI_CALL(cudaStreamWaitEvent, main_, done_[i].get(), 0);
    }
    joined_ = true;
  }

 private:
  cudaStream_t main_;
  std::vector<cudaStream_t> streams_;
  std::vector<Event> done_;
  bool joined_ = false;
};

template <typename T>
class Eigensolver {
 public:
  // For batches of `count` matrices n x n, and for the smaller batch of `rest` that may come last.
  Eigensolver(const Call<T>& call, int64_t count, int64_t rest)
      : call_(call), n_(call.sizes.rows), batched_(prefers_batched(call.sizes.blocks, n_)),
        lanes_(batched_ ? 1 : std::min<int64_t>(kStreams, count)) {
    for (const int64_t batch : {count, rest}) {
      if (batch == 0) continue;
      size_t device = 0, host = 0;
      measure(batch, &device, &host);
      device_bytes_ = std::max(device_bytes_, device);
      host_bytes_ = std::max(host_bytes_, host);
    }
  }

  void take_memory(Arena& arena) {
    for (int64_t i = 0; i < lanes_; ++i) buffers_[i] = arena.take<char>(static_cast<int64_t>(device_bytes_));
  }

  // Matrices [count, n, n], of which the lower triangles are read, become their eigenvectors: column-major, ascending.
  void solve(T* matrices, T* eigenvalues, int* info, int64_t count) {
    std::vector<std::vector<char>> host(lanes_, std::vector<char>(host_bytes_));
    if (batched_) {
      succeed(
          BatchedEigensolver::get().solve(
              call_.handles.solver(0), call_.handles.params.get(), CUSOLVER_EIG_MODE_VECTOR,
              CUBLAS_FILL_MODE_LOWER, n_, kType<T>, matrices, n_, kType<T>, eigenvalues, kType<T>, buffers_[0],
              device_bytes_, host[0].data(), host_bytes_, info, count),
          "cusolverDnXsyevBatched");
      return;
    }
    if (lanes_ == 1) return solve_each(matrices, eigenvalues, info, count, host);
    Fork fork(call_.device, call_.stream, lanes_);
    for (int64_t i = 0; i < lanes_; ++i)
      LASERTRI_CALL(cusolverDnSetStream, call_.handles.solver(i), fork[i]);
    solve_each(matrices, eigenvalues, info, count, host);
    fork.join();
  }

 private:
  // An unmeasured rule: the batched solver is made for many small matrices; large ones fill a device one by one.
  static bool prefers_batched(int64_t blocks, int64_t n) {
    return blocks > 1 && n <= 1024 && BatchedEigensolver::get();
  }

  void measure(int64_t batch, size_t* device, size_t* host) const {
    const cusolverDnHandle_t solver = call_.handles.solver(0);
    const cusolverDnParams_t params = call_.handles.params.get();
    if (batched_)  // the pointers are not followed
      succeed(
          BatchedEigensolver::get().buffer_size(
              solver, params, CUSOLVER_EIG_MODE_VECTOR, CUBLAS_FILL_MODE_LOWER, n_, kType<T>, call_.vectors, n_,
              kType<T>, call_.sigma, kType<T>, device, host, batch),
          "cusolverDnXsyevBatched_bufferSize");
    else
      LASERTRI_CALL(
          cusolverDnXsyevd_bufferSize, solver, params, CUSOLVER_EIG_MODE_VECTOR, CUBLAS_FILL_MODE_LOWER, n_, kType<T>,
          call_.vectors, n_, kType<T>, call_.sigma, kType<T>, device, host);
  }

  void solve_each(T* matrices, T* eigenvalues, int* info, int64_t count, std::vector<std::vector<char>>& host) {
    for (int64_t i = 0; i < count; ++i) {
      const int64_t lane = i % lanes_;
      LASERTRI_CALL(
          cusolverDnXsyevd, call_.handles.solver(lane), call_.handles.params.get(), CUSOLVER_EIG_MODE_VECTOR,
          CUBLAS_FILL_MODE_LOWER, n_, kType<T>, matrices + i * n_ * n_, n_, kType<T>, eigenvalues + i * n_, kType<T>,
          buffers_[lane], device_bytes_, host[lane].data(), host_bytes_, info + i);
    }
  }

  const Call<T>& call_;
  const int64_t n_;
  const bool batched_;
  const int64_t lanes_;
  size_t device_bytes_ = 0, host_bytes_ = 0;
  std::array<char*, kStreams> buffers_{};
};

}  // namespace lasertri
