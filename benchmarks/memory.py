"""Peak resident memory of a piece of work (Linux)."""

from __future__ import annotations

import ctypes
import gc
import re
from collections.abc import Callable
from pathlib import Path

MIB = 1 << 20
_LIBC = ctypes.CDLL("libc.so.6")
_M_MMAP_THRESHOLD = -3


def return_freed() -> None:
    """Have freed blocks given back from now on: resident should mean in use. glibc would raise its threshold."""
    _LIBC.mallopt(_M_MMAP_THRESHOLD, MIB)


def peak(work: Callable[[], object]) -> int:
    """Most resident bytes while `work` runs, over those before."""
    gc.collect()
    _LIBC.malloc_trim(0)  # what earlier work freed is not to be counted as resident
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = resident("VmRSS")
    work()
    return resident("VmHWM") - before


def resident(field: str) -> int:
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+) kB", status)[1]) * 1024
