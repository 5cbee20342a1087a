"""A build of the shim, with the op as `lasertri.ops.extension` has it."""

from __future__ import annotations

import ctypes
import shutil
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from time import sleep
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
Factors = tuple[Tensor, Tensor, Tensor]  # basis, sigma and status
SCHEDULES = ("at once", "oldest first", "newest first", "shuffled")
SCALAR_TYPES = {
    torch.uint8: 0,
    torch.int32: 3,
    torch.float16: 5,
    torch.float32: 6,
    torch.float64: 7,
    torch.bfloat16: 15,
}
TEXT = 4096


class Shim:
    """One library. What went wrong in it that no caller saw is an AssertionError."""

    def __init__(self, path: Path, absent: str = "") -> None:
        """`absent`: the step of looking up the batched eigensolver that finds nothing, as with an older cuSOLVER."""
        self._library = ctypes.CDLL(str(path))
        self._library.shim_absent(absent.encode())
        self._library.shim_last_allocation.restype = ctypes.c_int64
        self._library.shim_factor.restype = ctypes.c_bool
        self._library.shim_calls.restype = ctypes.c_long
        self.reset()

    def reset(self) -> None:
        """Back to the defaults, for the next case."""
        self.schedule("at once")
        self.fail("", 0, 0)
        self.unconverged(-1)
        self.panel_elements(1 << 24)
        self.use(0)
        self.use(0, device=1)

    def schedule(self, name: str, seed: int = 1) -> None:
        """In which order work runs that no event orders."""
        self._library.shim_schedule(SCHEDULES.index(name), ctypes.c_uint64(seed))

    def fail(self, function: str, after: int, code: int) -> None:
        """Let one call of a function, after so many that succeed, return a code; calls are counted anew."""
        self._library.shim_fail(function.encode(), ctypes.c_long(after), code)

    def calls(self, function: str) -> int:
        return self._library.shim_calls(function.encode())

    def unconverged(self, solve: int) -> None:
        """Let one solve of those to come, counted from 0, report that it did not converge."""
        self._library.shim_unconverged(ctypes.c_long(solve))

    def panel_elements(self, count: int) -> None:
        self._library.shim_panel_elements(ctypes.c_int64(count))

    def use(self, stream: int, *, device: int = 0) -> None:
        """Make a stream current in this thread: 0, the default, or one to five of torch's pool."""
        self._library.shim_use(device, stream)

    @property
    def current_device(self) -> int:
        return self._library.shim_current_device()

    @property
    def last_allocation(self) -> int:
        return self._library.shim_last_allocation()

    def open_things(self) -> str:
        """What is open: memory, handles, events, with their numbers."""
        return self._text(self._library.shim_open)

    def settle(self) -> None:
        """Run all that is queued, and ask what went wrong."""
        faults = self._text(self._library.shim_settle)
        assert not faults, faults

    def write_coverage(self) -> None:
        self._library.shim_write_coverage()

    def factor_blocks(
        self, blocks: Tensor, method: str, fp64: bool, workspace: int, *, device: int = 0, on_cuda: bool = True
    ) -> Factors:
        """The op, on a copy of the blocks, strides and all, that arrives on the current stream."""
        dimensions, length = blocks.dim(), min(blocks.shape[-2:])
        size, rows = blocks.shape[0], blocks.shape[-2]
        dtype = torch.float64 if fp64 else torch.float32
        basis = torch.full((size, length, rows), torch.nan, dtype=dtype)
        sigma = torch.full((size, length), torch.nan, dtype=dtype)
        status = torch.full((size,), -1, dtype=torch.int32)
        last = sum((n - 1) * step for n, step in zip(blocks.shape, blocks.stride(), strict=True))
        text = ctypes.create_string_buffer(TEXT)
        done = self._library.shim_factor(
            *(
                ctypes.c_void_p(blocks.data_ptr()),
                ctypes.c_int64((last + 1) * blocks.itemsize if blocks.numel() else 0),
            ),
            *(dimensions, _integers(blocks.shape), _integers(blocks.stride()), SCALAR_TYPES.get(blocks.dtype, -1)),
            *(device, ctypes.c_bool(on_cuda), method.encode(), ctypes.c_bool(fp64), ctypes.c_int64(workspace)),
            *(ctypes.c_void_p(result.data_ptr()) for result in (basis, sigma, status)),
            *(text, ctypes.c_size_t(TEXT)),
        )
        self.settle()
        if not done:
            raise RuntimeError(text.value.decode())
        return basis.mT, sigma, status

    def _text(self, function: Callable[..., None]) -> str:
        text = ctypes.create_string_buffer(TEXT)
        function(text, ctypes.c_size_t(TEXT))
        return text.value.decode()


class Libraries(NamedTuple):
    """A build, with the batched eigensolver and without."""

    path: Path
    batched: Shim
    looped: Shim

    @classmethod
    def load(cls, path: Path) -> Libraries:
        """A library keeps what it found of cuSOLVER: the second is a copy."""
        copy = Path(shutil.copy(path, path.with_name("looped.so")))
        return cls(path, Shim(path), Shim(copy, absent="cusolverDnXsyevBatched"))

    @property
    def both(self) -> tuple[Shim, Shim]:
        return self.batched, self.looped


def in_threads(*works: Callable[[], T]) -> list[T]:
    """The results of some works, each in a thread of its own, which closes its handles as it ends."""
    results: dict[int, T] = {}
    errors: list[BaseException] = []

    def body(i: int) -> None:
        try:
            results[i] = works[i]()
        except BaseException as error:  # raised again below
            errors.append(error)

    threads = [Thread(target=body, args=(i,)) for i in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
        while Path(f"/proc/self/task/{thread.native_id}").exists():  # Python is done with it before its handles are
            sleep(0.001)
    if errors:
        raise errors[0]
    return [results[i] for i in range(len(works))]


def _integers(values: tuple[int, ...]) -> ctypes.Array[ctypes.c_int64]:
    return (ctypes.c_int64 * len(values))(*values)
