"""What memory does not hold is done in smaller parts, or said in a sentence that holds nothing of it."""

import errno
import platform
import re
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from faults import out_of_memory

from lasertri.errors import TooLittleMemoryError
from lasertri.support.memory import as_memory_allows, give_back_freed, is_out_of_memory, memory_told

PETABYTE = 1 << 50
CUBLAS = "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"


def room_for_three(part):
    if len(part) > 3:
        raise out_of_memory()
    return sum(part)


def test_what_does_not_fit_is_halved_and_what_follows_with_it():
    tried = []
    parts = [[1, 2], list(range(10)), list(range(10, 16)), [16]]
    found = list(as_memory_allows(parts, lambda part: tried.append(len(part)) or room_for_three(part)))
    assert [part for part, _ in found] == [
        [1, 2],
        [0, 1],
        [2, 3, 4],
        [5, 6],
        [7, 8, 9],
        [10],
        [11, 12],
        [13],
        [14, 15],
        [16],
    ]
    assert tried == [2, 10, 5, 2, 3, 2, 3, 1, 2, 1, 2, 1]
    assert sum(total for _, total in found) == sum(range(17)) + 3


def test_where_the_smallest_part_does_not_fit_it_is_said_and_nothing_is_held():
    held = []

    def full(part):
        filled = torch.zeros(3)
        held.append(weakref.ref(filled))
        raise out_of_memory()

    with pytest.raises(TooLittleMemoryError) as raised:
        list(as_memory_allows([[1, 2], [3]], full, what="one part"))
    assert str(raised.value) == (
        "expected memory for one part, but the device has too little left (2.00 GiB more were needed); free some, load "
        "the model in a narrower dtype (--dtype bfloat16), or run on the CPU (--device cpu)"
    )
    assert raised.value.__cause__ is raised.value.__context__ is None
    assert len(held) == 2
    assert not any(tensor() is not None for tensor in held)


def test_a_shortage_within_is_handed_on_to_what_can_do_less_at_once():
    inner = lambda part: list(as_memory_allows([part[:1]], lambda _: room_for_three(part), what="an inner part"))  # noqa: E731
    assert [part for part, _ in as_memory_allows([[1, 2, 3, 4]], inner)] == [[1, 2], [3, 4]]
    with pytest.raises(TooLittleMemoryError, match="memory for an inner part, but"):
        list(
            as_memory_allows(
                [[1]], lambda _: list(as_memory_allows([[1]], lambda _: room_for_three("four"), what="an inner part"))
            )
        )


def failing(error):
    raise error


@pytest.mark.parametrize(
    ("fill", "said"),
    [
        (lambda: torch.empty(PETABYTE), "this machine has too little left (4.19e+06 GiB more were needed); free some"),
        (lambda: np.empty(PETABYTE), "this machine has too little left (8.00 PiB more were needed); free some"),
        (lambda: bytearray(PETABYTE), "this machine has too little left; free some"),
        (lambda: failing(OSError(errno.ENOMEM, "Cannot allocate memory")), "this machine has too little left; free"),
        (lambda: failing(out_of_memory()), "the device has too little left (2.00 GiB more were needed); free some"),
        (lambda: failing(RuntimeError(CUBLAS)), "the device has too little left; free some"),
    ],
    ids=["torch", "numpy", "python", "system", "CUDA", "cuBLAS"],
)
def test_every_sign_of_it_is_known(fill, said):
    with pytest.raises((RuntimeError, MemoryError, OSError)) as raised:
        fill()
    assert is_out_of_memory(raised.value)
    with (
        pytest.raises(TooLittleMemoryError, match="^" + re.escape(f"expected memory for it, but {said}")),
        memory_told("it"),
    ):
        fill()


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("a size of 3 and one of 4"),
        OSError("No space left"),
        ValueError("out of memory"),
        KeyboardInterrupt(),
    ],
)
def test_other_errors_are_left_alone(error):
    with pytest.raises(type(error)) as raised:
        list(as_memory_allows([[1, 2]], lambda _: failing(error)))
    assert raised.value is error
    with pytest.raises(type(error)), memory_told():
        failing(error)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="others give back what is freed")
def test_what_is_freed_is_given_back_though_what_was_made_after_it_is_still_there():
    def anonymous():
        return int(re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[1]) >> 10

    filled = [torch.ones(1 << 14) for _ in range(2000)]  # 64 KiB each, which glibc takes from its heap
    kept = filled[::50]
    full = anonymous()
    del filled
    give_back_freed()
    assert anonymous() < full - 100
    assert all(float(part[-1]) == 1 for part in kept)


def test_where_the_c_library_cannot_give_back_nothing_is_done(monkeypatch):
    monkeypatch.setattr("lasertri.support.memory._malloc_trim", lambda: None)
    give_back_freed()
