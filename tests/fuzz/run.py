"""Cases of a kind, one after the other, counted by what became of them."""

from __future__ import annotations

import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from random import Random

from transformers.utils import logging

from fuzz import cache, checkpoints, edits, ops, options, rows
from fuzz.outcome import Refused

KINDS = {
    "rows": rows.case,
    "options": options.case,
    "edits": edits.case,
    "checkpoints": checkpoints.case,
    "ops": ops.case,
    "cache": cache.case,
}


def run_case(kind: str, number: int) -> str:
    """What became of one case; any exception is a fault."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory(prefix="lasertri-fuzz-") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return KINDS[kind](Random(f"{kind}:{number}"), Path(folder))
        except Refused:
            return "refused"


def run(kind: str, numbers: Iterable[int], *, tell: Callable[[str], None]) -> int:
    """How many of these are faults; each is told, and how many ended in which way."""
    ends: Counter[str] = Counter()
    for number in numbers:
        try:
            ends[run_case(kind, number)] += 1
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{Path(last.filename).name}:{last.lineno}"
            message = " ".join(str(error).split())[:200]
            tell(f"{kind}:{number} {type(error).__name__} at {place}: {message}")
            ends["faults"] += 1
    tell(f"{kind}: {sum(ends.values())} cases, " + ", ".join(f"{count} {end}" for end, count in sorted(ends.items())))
    return ends["faults"]
