"""Factors on disk, so that the next task on the same model does not compute them again."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import math
import os
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from lasertri.errors import LasertriError
from lasertri.ops import BlockFactors, Partition
from lasertri.support.atomic_files import replace_file
from lasertri.support.checksum import tensor_hash
from lasertri.support.memory import is_out_of_memory

logger = logging.getLogger(__name__)

FORMAT = 2  # raise it when factors or their files come to mean something else
SIZE_GIB = 16
OFF = ("", "0", "off")
ENTRY = re.compile(r"[0-9a-f]{64}\.safetensors(\.[0-9a-f]{32})?")  # no file of another kind is ever deleted
ABANDONED = 3600  # seconds after which a file that is still no entry was left by a process that was killed


class FactorKey(NamedTuple):
    """What factors are known by.

    Attributes:
        weight_hash: `checksum.content_key` of the weight as stored.
        transposed: whether it is stored as [inputs, outputs].
        partition, columns: of the factors.
        backend: that made them.
        dtype: of their bases.
    """

    weight_hash: str
    transposed: bool
    partition: Partition
    columns: int
    backend: str
    dtype: torch.dtype

    @property
    def text(self) -> str:
        """The same for equal keys only, in this format."""
        order = self.partition.order
        digest = None if order is None else hashlib.sha256(order.cpu().numpy().tobytes()).hexdigest()
        known = (self.transposed, self.partition.offsets, digest, self.columns, self.backend, str(self.dtype))
        return json.dumps([FORMAT, self.weight_hash, *known])


class FactorCache:
    """A folder of factors, each in a file that proves its content; processes may share it.

    A disk that cannot be read or written, or too little memory for it, costs time, never the run: one warning, and all
    is computed.

    Args:
        directory: where they are.
        limit: bytes kept, whoever wrote them; the least recently used go first.
    """

    def __init__(self, directory: Path, limit: int = SIZE_GIB * 2**30) -> None:
        self.directory, self.limit = directory, limit
        self._warned = False
        self._sizes: dict[str, int] = {}  # by name: of thousands of files only the new ones are asked

    @classmethod
    def default(cls) -> FactorCache | None:
        """The cache that the environment asks for, or None.

        `LASERTRI_CACHE` is a folder, by default `lasertri` in the user's folder for caches; empty, "0" or "off" for
        none. `LASERTRI_CACHE_SIZE` is the limit in GiB.

        Raises:
            LasertriError: `LASERTRI_CACHE_SIZE` is no size.
        """
        chosen = os.environ.get("LASERTRI_CACHE")
        if chosen is not None and chosen.lower() in OFF:
            return None
        if importlib.util.find_spec("xxhash") is None:
            logger.warning("factors are not kept on disk: xxhash is not installed; pip install xxhash")
            return None
        caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        directory = os.path.expanduser(os.path.join(caches, "lasertri") if chosen is None else chosen)
        if directory.startswith("~"):  # else a folder of that name would appear where the work is done
            logger.warning("factors are not kept on disk: there is no home for %s; set LASERTRI_CACHE", directory)
            return None
        return cls(Path(directory), _limit_asked_for())

    def load(self, key: FactorKey) -> BlockFactors | None:
        """Factors on the CPU as they were stored under this key, or None; a damaged file is deleted."""
        path = self._path(key.text)
        tensors = None
        with self._disk():
            tensors = self._read(path, key.text)
        if tensors is None:
            return None
        with self._disk():
            _mark_used(path)
        return BlockFactors(tensors["basis"], tensors["sigma"], key.partition, key.columns)

    def store(self, key: FactorKey, factors: BlockFactors) -> None:
        """Keep factors under this key, and delete the least recently used ones that no longer fit.

        Raises:
            LasertriError: the factors are not those that the key names.
        """
        own = key._replace(partition=factors.partition, columns=factors.columns, dtype=factors.basis.dtype)
        if own.text != key.text:
            raise LasertriError(
                f"expected factors of the partition, {key.columns} columns and {key.dtype} that the key names, "
                f"got {factors.columns} columns and {factors.basis.dtype}"
            )
        with self._disk():
            tensors = {"basis": factors.basis.cpu().contiguous(), "sigma": factors.sigma.cpu().contiguous()}
            content = save(tensors, {"key": key.text, "content": _content_hash(tensors)})
            if len(content) <= self.limit:
                replace_file(self._path(key.text), content)
                _mark_used(self._path(key.text))
            self._evict()

    def sweep(self) -> None:
        """Delete the least recently used files that no longer fit; those of journals are named alike."""
        with self._disk():
            self._evict()

    def _path(self, key: str) -> Path:
        return self.directory / f"{hashlib.sha256(key.encode()).hexdigest()}.safetensors"

    def _read(self, path: Path, key: str) -> dict[str, Tensor] | None:
        """Tensors of an entry whose key and content are what they should be; any other is deleted."""
        try:
            with safe_open(path, framework="pt") as file:
                header = file.metadata() or {}
                # copied out of the file: what is hashed is what is used, whatever becomes of it
                tensors = {name: file.get_tensor(name).clone() for name in ("basis", "sigma")}
        except SafetensorError:
            header, tensors = {}, {}
        if header.get("key") == key and header.get("content") == _content_hash(tensors):
            return tensors
        logger.warning("%s: expected factors as they were stored, got a damaged file; it is computed again", path)
        path.unlink(missing_ok=True)
        return None

    def _evict(self) -> None:
        """Delete what was abandoned, then the least recently used until the rest fits, whoever wrote it."""
        sizes: dict[str, int] = {}
        for name in filter(ENTRY.fullmatch, os.listdir(self.directory)):
            path = self.directory / name
            with suppress(FileNotFoundError):  # another process deletes too
                if path.suffix == ".safetensors":
                    sizes[name] = self._sizes[name] if name in self._sizes else path.stat().st_size
                elif path.stat().st_mtime < time.time() - ABANDONED:
                    path.unlink()
                else:
                    sizes[name] = path.stat().st_size
        self._sizes = sizes
        if sum(sizes.values()) > self.limit:
            self._delete_oldest([self.directory / name for name in sizes])

    def _delete_oldest(self, paths: Iterable[Path]) -> None:
        stats = {}
        for path in paths:
            with suppress(FileNotFoundError):
                stats[path] = path.stat()
        total = sum(stat.st_size for stat in stats.values())
        for path in sorted(stats, key=lambda path: stats[path].st_mtime_ns):
            if total <= self.limit:
                break
            path.unlink(missing_ok=True)
            total -= stats[path].st_size

    @contextmanager
    def _disk(self) -> Iterator[None]:
        """Go on after an error of the disk or for lack of memory, and say so once; a file that has gone is none."""
        try:
            yield
        except FileNotFoundError:
            pass
        except (MemoryError, OSError, RuntimeError) as error:
            short = is_out_of_memory(error)
            if not short and not isinstance(error, OSError):
                raise
            if not self._warned:
                what = "memory" if short else "a folder"
                logger.warning("%s: expected %s for the cache, going on without: %s", self.directory, what, error)
            self._warned = True


def _limit_asked_for() -> int:
    text = os.environ.get("LASERTRI_CACHE_SIZE") or str(SIZE_GIB)
    try:
        size = float(text)
    except ValueError:
        size = math.nan
    if not 0 <= size < math.inf:
        raise LasertriError(f"expected LASERTRI_CACHE_SIZE to be a number of GiB such as {SIZE_GIB}, got {text!r}")
    return int(size * 2**30)


def _content_hash(tensors: dict[str, Tensor]) -> str:
    parts = [[name, str(x.dtype), list(x.shape), tensor_hash(x)] for name, x in sorted(tensors.items())]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _mark_used(path: Path) -> None:
    """Set the time that eviction goes by; a file system's own clock may tick too slowly to order what is stored."""
    now = time.time_ns()
    os.utime(path, ns=(now, now))
