"""Folders of factors, all damaged: what is read is what was stored, or nothing; and what is stored again is read."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from random import Random
from unittest.mock import patch

import torch

from fuzz.damage import damage
from fuzz.outcome import Refused
from lasertri import Partition, block_svd
from lasertri.factors import cache
from lasertri.factors.cache import FactorCache, FactorKey
from lasertri.ops import BlockFactors

ROWS, COLUMNS = 12, 8
LARGEST = 2000  # bytes of an entry


@functools.cache
def made(number: int) -> tuple[FactorKey, BlockFactors]:
    """One of a few keys, and factors of its own."""
    generator = torch.Generator().manual_seed(number)
    order = torch.randperm(ROWS, generator=generator) if number % 2 else None
    weight, partition = torch.randn(ROWS, COLUMNS, generator=generator), Partition((0, 5, ROWS), order)
    factors = block_svd(weight, blocks=partition)
    factors = factors._replace(basis=factors.basis.float())
    return FactorKey(f"{number:032x}", bool(number % 3), partition, COLUMNS, "gram", torch.float32), factors


def equal(found: BlockFactors, factors: BlockFactors) -> bool:
    return torch.equal(found.basis, factors.basis) and torch.equal(found.sigma, factors.sigma)


def case(random: Random, folder: Path) -> str:
    """Store a few, damage the folder, read them, store them again."""
    with patch.object(cache, "logger"):  # what it warns of is what is done here
        return _case(random, folder)


def _case(random: Random, folder: Path) -> str:
    entries = [made(random.randrange(6)) for _ in range(random.randint(1, 3))]
    mine, other = FactorCache(folder / "cache"), FactorCache(folder / "other")
    for key, factors in entries:
        mine.store(key, factors)
        other.store(*made(random.randrange(6)))
    for _ in range(random.randint(1, 2)):
        disturb(random, mine.directory, other.directory)
    found = [mine.load(key) for key, _ in entries]
    for loaded, (_, factors) in zip(found, entries, strict=True):
        assert loaded is None or equal(loaded, factors), "what was damaged was believed"
    mine.limit = random.choice((mine.limit, 10_000, LARGEST, 1000, 0))
    for key, factors in entries:
        mine.store(key, factors)
        loaded = mine.load(key)
        assert loaded is None or equal(loaded, factors)
    paths = list(mine.directory.iterdir()) if mine.directory.is_dir() else []
    if paths and all(path.is_file() and not path.is_symlink() for path in paths):
        assert sum(path.stat().st_size for path in paths if path.suffix == ".safetensors") <= mine.limit
        assert loaded is not None or mine.limit < LARGEST, "what was stored last is gone"
    if None in found:
        raise Refused("computed again")
    return "equal"


def disturb(random: Random, folder: Path, other: Path) -> None:
    """Do something to a folder that nobody should."""
    kind = random.choice(("damage", "damage", "damage", "swap", "folder", "link", "lost", "file", "foreign", "time"))
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    if not paths:
        return
    path = random.choice(paths)
    if kind == "damage" and all(path.is_file() for path in paths):
        damage(random, folder, [other])
    elif kind == "swap":
        second = random.choice(paths)
        if path.is_file() and second.is_file():
            path.write_bytes(second.read_bytes())
    elif kind == "folder" and path.is_file():
        path.unlink()
        path.mkdir()
    elif kind == "link" and path.is_file():
        path.unlink()
        path.symlink_to(random.choice((other / "nothing", path.name, "/dev/null")))
    elif kind == "lost":
        for each in paths:
            each.unlink() if each.is_symlink() or each.is_file() else each.rmdir()
        folder.rmdir()
    elif kind == "file":
        folder.rename(folder.with_name("moved"))
        folder.write_text("no folder")
    elif kind == "foreign":
        (folder / random.choice(("x", "a" * 64, "b" * 64 + ".safetensors." + "c" * 32))).write_bytes(
            random.randbytes(9)
        )
    elif kind == "time":
        os.utime(path, (random.choice((0, 1e9)),) * 2, follow_symlinks=False)
