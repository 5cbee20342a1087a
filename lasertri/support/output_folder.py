"""The folder that a result is written to: looked at before the work, and never half written after it.

What stands there is exchanged for what is new in one step. A mount point, the working directory, and a folder whose
parent cannot be written have to stay: in these file by file is replaced, all or none (`support/moves.py`).
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from lasertri.errors import LasertriError
from lasertri.support.moves import NEW, exchange, move, sync
from lasertri.support.paths import check_path, existing, files_below, is_mount, is_within
from lasertri.support.shown import failure, shown
from lasertri.support.workspace import PREFIX, is_workspace, locked, sweep, workspace
from lasertri.version import __version__

logger = logging.getLogger(__name__)

FILES_NAME = "lasertri_files.json"  # which files of the folder lasertri wrote

Inputs = Iterable[str | Path | None]


class OutputFolder:
    """Where a result is to go, once it is known that it can.

    Args:
        overwrite: whether what lasertri wrote there before may be replaced.
        inputs: files and folders that are read for the result; what does not exist, or is None, is passed over.

    Raises:
        LasertriError: it is no folder, cannot be written, holds an input, or something that may not be replaced.
    """

    def __init__(self, directory: str | Path, *, overwrite: bool = False, inputs: Inputs = ()) -> None:
        check_path("an output folder", directory)
        self.given = Path(directory)
        try:
            self.path = Path(os.path.realpath(self.given))
            str(self.path).encode()
            for place in (self.path.parent, self.path):
                sweep(place)
            if os.path.lexists(self.path):
                self._check_what_is_there(inputs)
            self._place = self._find_place()
            with locked(self.path):
                self._seen = self._entries()
                if self._seen:
                    self._check_replaceable(overwrite)
        except OSError as error:
            raise LasertriError(f"{self.given}: expected a folder that can be written: {failure(error)}") from error
        except UnicodeEncodeError as error:
            raise LasertriError(
                f"expected an output folder whose path is UTF-8, as tokenizers reads no other, got {str(directory)!r}"
            ) from error

    @classmethod
    def of(cls, directory: str | Path | OutputFolder, *, overwrite: bool = False, inputs: Inputs = ()) -> OutputFolder:
        """Itself, where it has been looked at."""
        return directory if isinstance(directory, OutputFolder) else cls(directory, overwrite=overwrite, inputs=inputs)

    @property
    def near(self) -> Path:
        """A folder that exists, on the disk where it will be: for what the work has no memory for."""
        return existing(self._place)

    def require(self, size: int) -> None:
        """Whether so many bytes will fit.

        Raises:
            LasertriError: they will not.
        """
        free = shutil.disk_usage(self.near).free
        if free < size:
            raise LasertriError(
                f"{self.given}: expected {size / 2**20:,.0f} MiB of free disk, got {free / 2**20:,.0f} MiB; free some, "
                "or choose a folder on another disk"
            )

    @contextmanager
    def written(self, rescue: Callable[[Path], object] | None = None) -> Iterator[Path]:
        """A folder to write into, which takes its place when all went well.

        Args:
            rescue: writes the little of the result that must not be lost, where the whole cannot be written.

        Raises:
            LasertriError: it could not; the message says where the result is kept, or what was rescued of it.
        """
        try:
            self._place.mkdir(parents=True, exist_ok=True)
            with workspace(self._place) as work:
                folder = work / NEW if self._stays else work / NEW / self.path.name
                folder.mkdir(parents=True)
                yield folder
                self._complete(folder)
                obstacle = self._put(work, folder)
        except BaseException as error:
            kept = None if rescue is None else rescued(rescue, self._place)
            said = "" if kept is None else f"; what was found is kept in {kept}"
            if isinstance(error, OSError | SafetensorError):
                raise LasertriError(f"{self.given}: writing failed: {failure(error)}{said}") from error
            if isinstance(error, LasertriError) and kept is not None:
                raise LasertriError(f"{error}{said}") from error
            if kept is not None:
                logger.warning("what was found is kept in %s", kept)
            raise
        if obstacle is not None:
            raise LasertriError(f"{self.given}: the result could not be put there: {obstacle}")

    @property
    def _stays(self) -> bool:
        """Whether the folder itself has to stay."""
        return self._place == self.path

    def _check_what_is_there(self, inputs: Inputs) -> None:
        mode = self.path.stat().st_mode
        if not stat.S_ISDIR(mode):
            kind = "a file" if stat.S_ISREG(mode) else "a device, pipe or socket"
            raise LasertriError(f"{self.given}: expected a folder to write to, got {kind}; choose another")
        for path in inputs:
            if path is not None and is_within(Path(path), self.path):
                raise LasertriError(
                    f"{self.given}: expected a folder to write to, but {path} is read from there; choose another"
                )

    def _find_place(self) -> Path:
        """Where the workspace is to be: beside the folder, or in it, where the folder has to stay."""
        there = self.path.exists()
        if not there or not (is_within(Path.cwd(), self.path) or is_mount(self.path)):
            try:
                with workspace(existing(self.path.parent)):
                    return self.path.parent
            except OSError:
                if not there:
                    raise
        with workspace(self.path):
            return self.path

    def _entries(self) -> dict[str, int]:
        """What stands in the folder, and when that was changed; but for what a mount point has of its own."""
        if not self.path.exists():
            return {}
        return {
            entry.name: entry.stat(follow_symlinks=False).st_mtime_ns
            for entry in os.scandir(self.path)
            if not (self._stays and (is_workspace(entry.name) or entry.name == "lost+found"))
        }

    def _check_replaceable(self, overwrite: bool) -> None:
        if not overwrite:
            raise LasertriError(
                f"{self.given}: expected a new or empty folder to write to; choose another or --overwrite"
            )
        try:
            known = set(json.loads((self.path / FILES_NAME).read_text(encoding="utf-8"))["files"])
        except (FileNotFoundError, ValueError, TypeError, KeyError, RecursionError):
            known = set()
        for entry in sorted(self._seen):
            for path in files_below(self.path / entry):
                name = path.relative_to(self.path).as_posix()
                if name not in known:
                    raise LasertriError(
                        f"{self.given}: expected a folder that lasertri wrote, to replace it, but {shown(name)} is not "
                        f"in its {FILES_NAME}; choose another, or move that away"
                    )

    def _complete(self, folder: Path) -> None:
        """List the files, let others read them, and have all reach the disk."""
        listing = folder / FILES_NAME
        names = sorted({FILES_NAME, *(path.relative_to(folder).as_posix() for path in files_below(folder))})
        content = {"lasertri_version": __version__, "files": names}
        listing.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        for name in names:
            (folder / name).chmod(stat.S_IMODE(listing.stat().st_mode))  # safetensors writes for the owner alone
            sync(folder / name)
        if self.path.exists():
            folder.chmod(stat.S_IMODE(self.path.stat().st_mode))
        for path in (*(path for path in folder.rglob("*") if path.is_dir()), folder):
            sync(path)

    def _put(self, work: Path, folder: Path) -> str | None:
        """Put what is complete where it is to go; else keep it beside, and return why, and where it is."""
        obstacle = "another process changed it meanwhile"
        try:
            with locked(self.path):
                if self._entries() == self._seen:
                    self._replace(work, folder)
                    obstacle = ""
        except OSError as error:
            obstacle = failure(error)
        if obstacle:
            kept = self._place / work.name.lstrip(".")
            os.rename(folder, kept)
            return f"{obstacle}; it is whole in {kept}"
        with suppress(OSError):  # it is there
            sync(self._place)
        return None

    def _replace(self, work: Path, folder: Path) -> None:
        """Put a folder in this one's place, or what is in it."""
        if self._stays:
            move(work, sorted(self._seen, key=_rank, reverse=True), sorted(os.listdir(folder), key=_rank))
        elif not self._seen:
            os.rename(folder, self.path)  # which replaces no folder but an empty one
        else:
            try:
                exchange(folder, self.path)
            except OSError:
                move(work, [self.path.name], [self.path.name])


def rescued(write: Callable[[Path], object], near: Path) -> Path | None:
    """Have something small written to a new folder at the first place that takes it; None where none does."""
    for place in (existing(near), Path(os.curdir), None):
        folder = None
        try:
            folder = Path(tempfile.mkdtemp(prefix=PREFIX.lstrip("."), dir=place)).absolute()
            write(folder)
            for path in files_below(folder):
                sync(path)
            return folder
        except (OSError, SafetensorError, ValueError, RuntimeError):
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)
    return None


def _rank(name: str) -> tuple[bool, bool]:
    """What others know the folder by comes last: descriptions, and of these configurations."""
    return name.endswith(".json"), name.endswith("config.json")
