"""Work in parts that memory holds: where one does not fit, it is made smaller and done again.

What has run out of memory is told in one sentence, and holds nothing of what filled it.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from lasertri.errors import TooLittleMemoryError
from lasertri.support.ambient import within

logger = logging.getLogger(__name__)

# of torch's allocators, of the operating system, of C++, of CUDA's libraries
SIGNS = re.compile("out of memory|can(no|')t allocate memory|not enough memory|bad_alloc|ALLOC_FAILED", re.IGNORECASE)


TOGETHER = "a batch, which processes with parts of one model run together and so as it is (--batch-size)"
_undivided: ContextVar[bool] = ContextVar("undivided", default=False)

Part = TypeVar("Part")
Found = TypeVar("Found")


def halves(part: Any) -> Sequence[Any]:
    """The two halves of what can be taken apart, such as a list; none of one."""
    middle = len(part) // 2
    return (part[:middle], part[middle:]) if middle else ()


def undivided() -> AbstractContextManager[None]:
    """Within, nothing is made smaller: other processes run the same parts, and would go on with the larger ones."""
    return within(_undivided, True)


def as_memory_allows(
    parts: Iterable[Part],
    run: Callable[[Part], Found],
    smaller: Callable[[Part], Sequence[Part]] = halves,
    *,
    what: str = "one sample at a time",
) -> Iterator[tuple[Part, Found]]:
    """Every part with what it gives when it is run; of one that memory does not hold, those that it is made into.

    Those after it are made smaller with it. What `run` changes must not matter when it is called again.

    Args:
        smaller: what a part is made into; nothing where it cannot be.
        what: names the smallest part, for the sentence that says it does not fit.

    Raises:
        TooLittleMemoryError: memory does not hold the smallest part.
    """
    waiting = list(parts)
    while waiting:
        short = None
        try:
            found = run(waiting[0])
        except (MemoryError, OSError, RuntimeError, TooLittleMemoryError) as error:
            short = shortage(error, TOGETHER if _undivided.get() else what)
            if short is None:
                raise
        if short is None:
            yield waiting.pop(0), found
            continue
        _release()  # here, where the error no longer holds what filled the memory
        if _undivided.get() or not smaller(waiting[0]):
            raise short
        logger.info("memory does not hold so much at once: smaller batches follow")
        waiting = [piece for part in waiting for piece in smaller(part) or (part,)]


@contextmanager
def memory_told(what: str = "all that is asked for") -> Iterator[None]:
    """Within, or as a decorator: running out of memory is a `TooLittleMemoryError`."""
    short = None
    try:
        yield
    except (MemoryError, OSError, RuntimeError) as error:
        short = shortage(error, what)
        if short is None:
            raise
    if short is not None:
        _release()
        raise short


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of the machine or of a device."""
    if isinstance(error, MemoryError | TooLittleMemoryError):
        return True
    return isinstance(error, OSError | RuntimeError) and SIGNS.search(str(error)) is not None


def shortage(error: BaseException, what: str = "all that is asked for") -> TooLittleMemoryError | None:
    """An error that says in a sentence that memory ran out; None for one that another reason has."""
    if not is_out_of_memory(error):
        return None
    short = TooLittleMemoryError(str(error) if isinstance(error, TooLittleMemoryError) else _told(error, what))
    short.__dict__.update(error.__dict__)  # such as that all processes raise it
    return short


def _told(error: BaseException, what: str) -> str:
    """The sentence."""
    asked = re.search(r"allocate ([\d.]+) (bytes|[KMGTP]iB)", str(error))
    size = ""
    if asked is not None:
        amount = f"{float(asked[1]) / 2**30:,.3g} GiB" if asked[2] == "bytes" else f"{asked[1]} {asked[2]}"
        size = f" ({amount} more were needed)"
    if re.search("CUDA|_STATUS_", str(error)):
        place, other = "the device", "on the CPU (--device cpu)"
    else:
        place, other = "this machine", "on one with more"
    return (
        f"expected memory for {what}, but {place} has too little left{size}; free some, load the model in a "
        f"narrower dtype (--dtype bfloat16), or run {other}"
    )


def give_back_freed() -> None:
    """Have the C library give back to the system what nothing uses; glibc keeps it, more of it with every matrix."""
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@functools.cache
def _malloc_trim() -> Callable[[int], int] | None:
    """That of glibc; others have none."""
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None


def _release() -> None:
    """Give back to the device what torch keeps of it for itself."""
    import torch  # not above: what --help needs waits for no torch

    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
