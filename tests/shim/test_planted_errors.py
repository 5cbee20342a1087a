"""Whether the cases would see a mistake: each of these is planted in a copy of `csrc/cuda`, and one of them must fail."""

import subprocess
import sys

import pytest
from shim.build import Mutation, build, environment

SVD, SOLVER, CALL = "cuda/block_svd.cu", "cuda/eigensolver.cuh", "cuda/call.cuh"
HANDLES, KERNELS = "cuda/handles.h", "cuda/kernels.cuh"
ERRORS = {
    "lanes do not wait for the main stream": Mutation(
        SOLVER, "LASERTRI_CALL(cudaStreamWaitEvent, streams_.back(), ready.get(), 0);", ""
    ),
    "the main stream does not wait for lanes": Mutation(
        SOLVER, "LASERTRI_CALL(cudaStreamWaitEvent, main_, done_[i].get(), 0);", ""
    ),
    "nor after an error": Mutation(SOLVER, "if (joined_) return;", "return;"),
    "lanes share a workspace": Mutation(SOLVER, "buffers_[lane], device_bytes_", "buffers_[0], device_bytes_"),
    "lanes share a stream's handle": Mutation(SOLVER, "cusolverDnXsyevd, call_.handles.solver(lane)", "cusolverDnXsyevd, call_.handles.solver(0)"),
    "eigenvalues of the block before": Mutation(SOLVER, "eigenvalues + i * n_", "eigenvalues + i * i"),
    "the info of the first block for all": Mutation(SOLVER, "host_bytes_, info + i);", "host_bytes_, info);"),
    "a NaN is laid to the first batch": Mutation(SVD, "gram, s * s, s + 1, s, gram, s * s, call.status + first", "gram, s * s, s + 1, s, gram, s * s, call.status"),
    "doubts are laid to the first batch": Mutation(SVD, "std::is_same_v<T, double>, call.status + first", "std::is_same_v<T, double>, call.status"),
    "a NaN is laid to the first block of an SVD": Mutation(SVD, "s * l, call.status + b", "s * l, call.status"),
    "FP32 is doubted too": Mutation(SVD, "std::is_same_v<T, double>, call.status + first", "true, call.status + first"),
    "panels of the first block for all": Mutation(SVD, "s * w, plan.panel, as_int(ld), s * w, start", "s * w, plan.panel, as_int(ld), 0, start"),
    "sides are swapped": Mutation(SVD, "as_int(w), as_int(r), as_int(s)", "as_int(r), as_int(w), as_int(s)"),
    "panels overwrite the Gram matrix": Mutation(SVD, "start == 0 ? &zero : &one", "&zero"),
    "panels overwrite the norms": Mutation(SVD, "sigma, start > 0", "sigma, false"),
    "the last panel stays for all": Mutation(SVD, "if (plan.width < l) call.widen_panel", "if (false) call.widen_panel"),
    "eigenvectors of the smallest": Mutation(SVD, "(s - r) * s, r * s * sizeof(T)", "0, r * s * sizeof(T)"),
    "eigenvalues of the smallest": Mutation(KERNELS, "eigenvalues + i * rows + (rows - length)", "eigenvalues + i * rows"),
    "columns taken for rows": Mutation(SVD, "blocks.stride(2) <= call.blocks.stride(1)", "blocks.stride(2) >= 0"),
    "one info for all": Mutation(SVD, "arena.take<int>(count)", "arena.take<int>(1)"),
    "TF32": Mutation(CALL, "CUBLAS_PEDANTIC_MATH", "CUBLAS_DEFAULT_MATH"),
    "cuSOLVER on another stream": Mutation(CALL, "LASERTRI_CALL(cusolverDnSetStream, handles.solver(0), stream);", ""),
    "cuBLAS on another stream": Mutation(CALL, "LASERTRI_CALL(cublasSetStream, handles.blas.get(), stream);", ""),
    "handles of another device": Mutation(HANDLES, "known[device]", "known[0]"),
    "another device stays current": Mutation(SVD, "const torch::stable::accelerator::DeviceGuard guard(blocks.get_device_index());", ""),
    "nothing is closed": Mutation(HANDLES, "(void)Destroy(handle);", "(void)handle;"),
    "an error goes unnoticed": Mutation(HANDLES, "if (code != CUSOLVER_STATUS_SUCCESS)", "if (false)"),
    "a launch that failed goes unnoticed": Mutation(HANDLES, 'cudaGetLastError(), "the launch of " kernel', 'cudaSuccess, ""'),
    "no barrier before the sums": Mutation(KERNELS, "partial[threadIdx.x] = sum;\n  __syncthreads();", "partial[threadIdx.x] = sum;"),
    "no barrier between the sums": Mutation(KERNELS, "partial[threadIdx.x + half];\n    __syncthreads();", "partial[threadIdx.x + half];"),
    "no barrier before the maximum": Mutation(KERNELS, "maxima[threadIdx.x] = largest;\n  __syncthreads();", "maxima[threadIdx.x] = largest;"),
    "each thread refuses alone": Mutation(KERNELS, "if (!__syncthreads_or(bad)) return;", "if (!bad) return;"),
    "a refused matrix stays": Mutation(KERNELS, "matrix[i * size + k] = 0;", ""),
    "lines of the block before": Mutation(KERNELS, "i = line / outer, j = line % outer", "i = line / inner, j = line % outer"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", ERRORS)
def test_a_planted_error_is_caught(name, tmp_path):
    library = build(tmp_path / "built", [ERRORS[name]])
    command = [sys.executable, "-m", "shim.cases", library]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode not in (0, 2), "no case failed"
    print(done.stdout[:500], done.stderr[-500:])
