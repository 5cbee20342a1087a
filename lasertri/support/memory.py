"""Memory that is not there, however a library says so."""

from __future__ import annotations

import re

# torch has a class for a GPU's, and for the CPU's none
PHRASES = re.compile("out of memory|can't allocate memory|Cannot allocate memory|bad_alloc|ALLOC_FAILED", re.IGNORECASE)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it was raised because memory could not be had, of the CPU or of a GPU."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError | OSError) and PHRASES.search(str(error)) is not None


def out_of_memory(error: BaseException) -> str:
    """The sentence for a user."""
    asked = re.search(r"allocate ([\d.]+) (bytes|[KMGTP]iB)", str(error))
    size = ""
    if asked is not None:
        amount, unit = asked.groups()
        size = f" for {float(amount) / 2**30:,.3g} GiB more" if unit == "bytes" else f" for {amount} {unit} more"
    place = "the GPU" if re.search("CUDA|CUBLAS|CUDNN|CUSOLVER", str(error)) else "this machine"
    return (
        f"expected memory{size}, but {place} has none left; choose a smaller --batch-size or --memory-budget, a "
        "narrower --dtype, or a smaller model"
    )
