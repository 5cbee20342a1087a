"""Whether the cases would see a mistake: each is planted in a copy of `csrc/cuda`, and some case must fail."""

import os
import subprocess
import sys

import pytest

from shim.build import Mutation, build, environment
from shim.run import CASE_FAILED

# By file: what is wrong, a text that is there once, and what takes its place.
ERRORS = {
    "eigensolver.cuh": {
        "lanes do not wait for the main stream": (
            "LASERTRI_CALL(cudaStreamWaitEvent, streams_.back(), ready.get(), 0);",
            "",
        ),
        "the main stream does not wait for lanes": (
            "LASERTRI_CALL(cudaStreamWaitEvent, main_, done_[i].get(), 0);",
            "",
        ),
        "nor after an error": ("if (joined_) return;", "return;"),
        "lanes share a workspace": ("buffers_[lane], device_bytes_", "buffers_[0], device_bytes_"),
        "eigenvalues in the wrong place": ("eigenvalues + i * n_", "eigenvalues + i * i"),
        "every block's info in the first's place": ("host_bytes_, info + i);", "host_bytes_, info);"),
    },
    "block_svd.cu": {
        "a NaN is laid to the first batch": ("gram, s * s, call.status + first", "gram, s * s, call.status"),
        "doubts are laid to the first batch": ("double>, call.status + first", "double>, call.status"),
        "a NaN is laid to the first block of an SVD": ("s * l, call.status + b", "s * l, call.status"),
        "FP32 is doubted too": ("std::is_same_v<T, double>, call", "true, call"),
        "the first panel for all blocks": ("as_int(ld), s * w, start", "as_int(ld), 0, start"),
        "sides are swapped": ("as_int(w), as_int(r), as_int(s)", "as_int(r), as_int(w), as_int(s)"),
        "columns are taken for rows": ("as_panel = by_rows ? CUBLAS_OP_T : CUBLAS_OP_N", "as_panel = CUBLAS_OP_T"),
        "a panel overwrites the Gram matrix": ("start == 0 ? &zero : &one", "&zero"),
        "a panel overwrites the norms": ("sigma, start > 0", "sigma, false"),
        "the last panel stays": ("if (plan.width < l)", "if (false)"),
        "eigenvectors of the smallest": ("(s - r) * s, r * s * sizeof(T)", "0, r * s * sizeof(T)"),
        "room for one info": ("arena.take<int>(count)", "arena.take<int>(1)"),
        "another device stays current": (
            "const torch::stable::accelerator::DeviceGuard guard(blocks.get_device_index());",
            "",
        ),
    },
    "call.cuh": {
        "TF32": ("CUBLAS_PEDANTIC_MATH", "CUBLAS_DEFAULT_MATH"),
        "cuSOLVER on another stream": ("LASERTRI_CALL(cusolverDnSetStream, handles.solver(0), stream);", ""),
        "cuBLAS on another stream": ("handles.blas.get(), stream", "handles.blas.get(), nullptr"),
    },
    "handles.h": {
        "handles of another device": ("known[device]", "known[device * 0]"),
        "nothing is closed": ("(void)Destroy(handle);", "(void)handle;"),
        "an error goes unnoticed": ("if (code != CUSOLVER_STATUS_SUCCESS)", "if (false)"),
        "a launch that failed goes unnoticed": ("cudaGetLastError()", "cudaSuccess"),
    },
    "kernels.cuh": {
        "no barrier before the sums": ("threadIdx.x] = sum;\n  __syncthreads();", "threadIdx.x] = sum;"),
        "no barrier between sums": (
            "partial[threadIdx.x + half];\n    __syncthreads();",
            "partial[threadIdx.x + half];",
        ),
        "no barrier before the maximum": ("threadIdx.x] = largest;\n  __syncthreads();", "threadIdx.x] = largest;"),
        "each thread refuses alone": ("if (!__syncthreads_or(bad)) return;", "if (!bad) return;"),
        "a refused matrix stays": ("matrix[i * size + k] = 0;", ""),
        "lines of another block": ("i = line / outer", "i = line / inner"),
        "eigenvalues of the smallest": ("i * rows + (rows - length)", "i * rows"),
    },
}


ALL = [(file, name) for file, errors in ERRORS.items() for name in errors]


# each is compiled: a quarter of them by default, LASERTRI_PLANT=all for every one
@pytest.mark.slow
@pytest.mark.parametrize(("file", "name"), ALL if os.environ.get("LASERTRI_PLANT") == "all" else ALL[::4])
def test_a_planted_error_is_caught(file, name, tmp_path):
    library = build(tmp_path / "built", [Mutation(f"cuda/{file}", *ERRORS[file][name])])
    command = [sys.executable, "-m", "shim.run", library]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == CASE_FAILED or done.returncode < 0, done.stdout + done.stderr
