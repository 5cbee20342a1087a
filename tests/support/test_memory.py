"""Memory that is not there is known from any library's words, and said in one sentence."""

import numpy as np
import pytest
import torch

from lasertri.support.memory import is_out_of_memory, out_of_memory

PETABYTE = 1 << 50


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda: torch.empty(PETABYTE), "expected memory for 4.19e+06 GiB more, but this machine has none left"),
        (lambda: np.empty(PETABYTE), "expected memory for 8.00 PiB more, but this machine has none left"),
        (lambda: bytearray(PETABYTE), "expected memory, but this machine has none left"),
    ],
    ids=["torch", "numpy", "python"],
)
def test_of_the_cpu(ask, said):
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        ask()
    assert is_out_of_memory(caught.value)
    assert out_of_memory(caught.value).startswith(said)


def test_of_a_gpu():
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of")
    assert is_out_of_memory(error)
    assert "for 20.00 MiB more, but the GPU has none left" in out_of_memory(error)
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"))


@pytest.mark.parametrize("error", [RuntimeError("shapes"), OSError("No space left"), ValueError("out of memory")])
def test_other_errors_are_none(error):
    assert not is_out_of_memory(error)
