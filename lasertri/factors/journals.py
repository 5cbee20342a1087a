"""Journals in a folder, which may be that of the cache."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lasertri.factors.cache import FactorCache
from lasertri.support.journal import NOTHING, Journal
from lasertri.support.paths import check_path


def open_journal(
    folder: str | Path | None, about: Callable[[], object], cache: FactorCache | None, *, resume: bool
) -> Journal:
    """The journal of some work, see `Journal.open`; in the cache's own folder it counts towards what that may hold.

    Args:
        folder: None for no journal.
    """
    if folder is None:
        return NOTHING
    check_path("a folder for a journal", folder)
    if cache is not None and cache.directory == Path(folder):
        return Journal.open(Path(folder), about(), resume=resume, kept=cache.sweep)
    return Journal.open(Path(folder), about(), resume=resume)


def journal_folder() -> Path | None:
    """Where commands have their journals: in the cache, if there is one."""
    cache = FactorCache.default()
    return None if cache is None else cache.directory
