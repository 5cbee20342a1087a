"""What long work has given so far, on disk as it goes: the same work, killed and begun again, goes on from there.

A record is what one piece of it gave, as tensors. Those of some seconds share a file, which is there whole or not at
all; a record that was damaged counts as never made.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from lasertri.support.atomic_files import replace_file
from lasertri.support.environment import environment
from lasertri.support.timing import duration

logger = logging.getLogger(__name__)

FORMAT = 2  # raise it when records come to mean something else
EVERY = 10.0  # seconds: so much work is lost at most, and no more often is a disk waited for
HELD = 1 << 24  # bytes: nor do more of them wait in memory
VERSIONS = ("lasertri", "torch", "transformers")

Record = tuple[Tensor, ...]


def _nothing() -> None:
    pass


class Journal:
    """Records by what they depend on; without files it knows nothing and keeps nothing."""

    def __init__(self, files: _Files | None = None, scope: str = "", before: Callable[[], object] = _nothing) -> None:
        self._files, self._scope, self._before = files, scope, before

    @classmethod
    def open(cls, folder: Path, about: object, *, resume: bool = True, kept: Callable[[], object] = _nothing) -> Self:
        """The journal of this work in a folder with any number of others; what is known of it is said in a line.

        Args:
            about: everything that its records depend on beside versions, ready for JSON.
            resume: else it begins anew.
            kept: is called when a file was added.
        """
        versions = environment()
        text = json.dumps([FORMAT, [versions[name] for name in VERSIONS], about], sort_keys=True, default=str)
        return cls(_Files(folder, hashlib.sha256(text.encode()).hexdigest(), resume, kept))

    def under(self, *about: object) -> Self:
        """The same, for records that depend on this as well; a text stays legible."""
        return type(self)(self._files, "".join([self._scope, *(f"{_name(each)}/" for each in about)]), self._before)

    @contextmanager
    def within(self, context: AbstractContextManager[object]) -> Iterator[Self]:
        """The same, with this context entered before the first of its records is made, if one is."""
        with ExitStack() as stack:

            @functools.cache
            def enter() -> None:
                self._before()
                stack.enter_context(context)

            yield type(self)(self._files, self._scope, enter)

    def of(self, about: object, make: Callable[[], Sequence[Tensor]]) -> Record:
        """The record of this, made if it is not known: on the CPU, and not to be written to."""
        found = self.recall(about)
        if found is None:
            self._before()
            found = self.keep(about, make())
        return found

    def recall(self, about: object) -> Record | None:
        """The record of this, if it is known."""
        return None if self._files is None else self._files.read(self._scope + _name(about))

    def keep(self, about: object, tensors: Sequence[Tensor]) -> Record:
        """The record of this, just made; it lies in memory as a recalled one does, so that both round alike."""
        record = tuple(x.detach().to("cpu", copy=True, memory_format=torch.contiguous_format) for x in tensors)
        if self._files is not None:
            self._files.add(self._scope + _name(about), record)
        return record

    def now(self) -> float:
        """Seconds, on a clock by which work whose record was recalled took as long as it did."""
        return time.perf_counter() + (0.0 if self._files is None else self._files.spared)

    def delete(self) -> None:
        """The work has come to its end."""
        if self._files is not None:
            self._files.delete()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._files is not None:
            self._files.write()


NOTHING = Journal()


class _Place(NamedTuple):
    """Where a record is: as which of a file's, of how many tensors; what its making took, and its checksum."""

    path: Path
    number: int
    size: int
    seconds: float
    checksum: str


class _Files:
    """The files of one journal, each with some records and a list of them. A disk that fails costs time, never the run.

    They are named as entries of the cache of factors are, with which they may share a folder: the key's half, and
    digits of their own.

    Attributes:
        spared: seconds that making took of what was read.
    """

    def __init__(self, folder: Path, key: str, resume: bool, kept: Callable[[], object]) -> None:
        self.folder, self.key, self.kept, self.spared = folder, key, kept, 0.0
        self._places: dict[str, _Place] = {}
        self._new: list[tuple[str, Record, float]] = []
        self._held = 0
        self._written, self._last, self._warned = time.perf_counter(), time.perf_counter(), False
        if not resume:
            self.delete()
        for path in self._paths(".safetensors"):
            self._list(path)
        if self._places:
            phases = list(dict.fromkeys(name.partition("/")[0] for name in self._places))
            *others, last = phases
            logger.info(
                "going on where this was stopped: %s of %s are there already; --no-resume begins anew",
                duration(sum(place.seconds for place in self._places.values())),
                f"{', '.join(others)} and {last}" if others else last,
            )

    def read(self, name: str) -> Record | None:
        """A record that is there and as it was written; of a damaged file nothing is known any more."""
        self._last = time.perf_counter()
        place, record = self._places.get(name), None
        if place is None:
            return None
        try:
            with suppress(SafetensorError), safe_open(place.path, framework="pt") as file:
                # copied out of the file: what is checked is what is used, whatever becomes of it
                record = tuple(file.get_tensor(f"{place.number}.{i}").clone() for i in range(place.size))
        except OSError:  # it is gone, or cannot be read now
            return None
        if record is None or _checksum(name, record) != place.checksum:
            self._forget(place.path)
            return None
        self.spared += place.seconds
        self._places[name] = place._replace(seconds=0.0)
        return record

    def add(self, name: str, record: Record) -> None:
        """Keep a record that was made since the last one was kept or asked for."""
        now = time.perf_counter()
        self._new.append((name, record, now - self._last))
        self._last = now
        self._held += sum(tensor.nbytes for tensor in record)
        if now - self._written >= EVERY or self._held >= HELD:
            self.write()

    def write(self) -> None:
        """Have what was added reach the disk."""
        if not self._new:
            return
        own = f"{time.time_ns():016x}{uuid.uuid4().hex[:16]}"  # in the order in which they are written
        path = self.folder / f"{self.key[:32]}{own}.safetensors"
        content, listing, places = dict[str, Tensor](), list[object](), dict[str, _Place]()
        for number, (name, record, seconds) in enumerate(self._new):
            content |= {f"{number}.{i}": tensor for i, tensor in enumerate(record)}
            places[name] = _Place(path, number, len(record), 0.0, _checksum(name, record))
            listing.append([name, number, len(record), seconds, places[name].checksum])
        text = json.dumps(listing)
        try:
            replace_file(path, save(content, {"records": text, "checksum": self._seal(text)}), durable=True)
            self._places |= places
            self.kept()
        except OSError as error:
            if not self._warned:
                logger.warning("%s: expected a folder for a journal, going on without: %s", self.folder, error)
            self._warned = True
        self._new, self._held, self._written = [], 0, time.perf_counter()

    def delete(self) -> None:
        """Forget all, what was left half written too."""
        self._places, self._new, self._held = {}, [], 0
        for path in self._paths(""):
            with suppress(OSError):
                path.unlink()

    def _paths(self, end: str) -> list[Path]:
        with suppress(OSError):
            names = sorted(os.listdir(self.folder))
            return [self.folder / name for name in names if name.startswith(self.key[:32]) and name.endswith(end)]
        return []

    def _list(self, path: Path) -> None:
        """Take in what a file says that it has, and mark it as used."""
        header: dict[str, str] = {}
        try:
            with suppress(SafetensorError), safe_open(path, framework="pt") as file:
                header = file.metadata() or {}
        except OSError:
            return
        text = header.get("records", "")
        if header.get("checksum") != self._seal(text):
            self._forget(path)
            return
        for name, *place in json.loads(text):
            self._places[name] = _Place(path, *place)
        with suppress(OSError):
            os.utime(path)

    def _forget(self, path: Path) -> None:
        self._places = {name: place for name, place in self._places.items() if place.path != path}
        logger.warning("%s: expected a journal as it was written, got a damaged file; its part is done again", path)
        with suppress(OSError):
            path.unlink()

    def _seal(self, text: str) -> str:
        """Of a list of records of this journal."""
        return hashlib.sha256(f"{self.key} {text}".encode()).hexdigest()


def _name(about: object) -> str:
    return about if isinstance(about, str) else hashlib.sha256(repr(about).encode()).hexdigest()[:32]


def _checksum(name: str, record: Record) -> str:
    digest = hashlib.sha256(repr([name, *((str(x.dtype), list(x.shape)) for x in record)]).encode())
    for tensor in record:
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
