"""Every call of CUDA, cuBLAS, cuSOLVER and torch that can fail, made to fail."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from spectra import gapped
from torch import Tensor

from shim.cases import ALL_AT_ONCE, assert_factors, factored
from shim.library import Libraries, Shim, in_threads


class Kind(NamedTuple):
    """Functions that fail in the same way.

    Attributes:
        words: what the error says of it.
        codes: that a function may return; the last one says that there is no memory.
    """

    words: str
    codes: tuple[int, ...]
    functions: tuple[str, ...]


KINDS = (
    Kind(
        "CUDA error",
        (1, 46, 700, 719, 2),
        ("cudaEventCreateWithFlags", "cudaEventRecord", "cudaStreamWaitEvent", "cudaMemcpyAsync", "launch"),
    ),
    Kind(
        "cuBLAS status",
        (1, 7, 8, 11, 13, 14, 15, 16, 3),
        (
            *("cublasCreate", "cublasSetStream", "cublasSetMathMode"),
            *("cublasDgemmStridedBatched", "cublasSgemmStridedBatched"),
        ),
    ),
    Kind(
        "cuSOLVER status",
        (1, 3, 4, 5, 6, 7, 8, 9, 10, 11, 31, 2),
        (
            *("cusolverDnCreate", "cusolverDnCreateParams", "cusolverDnSetStream", "cusolverDnCreateGesvdjInfo"),
            *("cusolverDnXsyevd", "cusolverDnXsyevd_bufferSize"),
            *("cusolverDnXsyevBatched", "cusolverDnXsyevBatched_bufferSize"),
            *("cusolverDnDgesvdj", "cusolverDnDgesvdj_bufferSize", "cusolverDnSgesvdj", "cusolverDnSgesvdj_bufferSize"),
        ),
    ),
    Kind("of device 0, got an error", (1,), ("aoti_torch_get_current_cuda_stream", "torch_get_cuda_stream_from_pool")),
    Kind("CUDA out of memory", (1,), ("new_empty",)),
)


class Failure(NamedTuple):
    """In a call of the op, one call of a function that returns a code, after so many that succeed."""

    shim: Shim
    blocks: Tensor
    method: str
    fp64: bool
    kind: Kind
    function: str
    after: int
    code: int


def failures(libraries: Libraries, *, thorough: bool) -> Iterator[Failure]:
    """The first and the last call of each function failing, or all of them with each of their codes."""
    blocks = gapped(5, 9, 4)
    for shim, method, fp64 in itertools.product(libraries.both, ("gram", "direct"), (True, False)):
        shim.reset()
        factored(shim, blocks, method, fp64)
        counts = {name: shim.calls(name) for kind in KINDS for name in kind.functions}
        for kind in KINDS:
            for function in kind.functions:
                every = list(itertools.product(range(counts[function]), kind.codes))
                for after, code in every if thorough else {*every[:1], *every[-1:]}:
                    yield Failure(shim, blocks, method, fp64, kind, function, after, code)


def check(failure: Failure) -> None:
    """An error names the call and its code; the same thread's next call is right; nothing stays open."""
    shim, blocks, method, fp64, kind, function, after, code = failure

    def calls() -> str:
        shim.fail(function, after, code)
        with pytest.raises(RuntimeError) as error:
            shim.factor_blocks(blocks, method, fp64, ALL_AT_ONCE)
        assert shim.current_device == 0
        assert "memory" not in shim.open_things()
        assert "event" not in shim.open_things()
        shim.fail("", 0, 0)
        assert_factors(shim.factor_blocks(blocks, method, fp64, ALL_AT_ONCE), blocks, fp64)
        return str(error.value)

    shim.reset()
    shim.schedule("oldest first")  # what is freed is overwritten before lanes go on, unless it waits for them
    [told] = in_threads(calls)
    assert shim.open_things() == ""
    assert told.startswith(("expected ", kind.words)), told
    assert kind.words in told, told
    assert "\n" not in told
    if len(kind.codes) > 1:
        assert f"{kind.words} {code}" in told, told
        assert told.endswith("; free some of the device's memory") == (code == kind.codes[-1]), told


def failed_calls(libraries: Libraries) -> None:
    for failure in failures(libraries, thorough=False):
        check(failure)
