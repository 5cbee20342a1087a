"""An edit: what is changed in a model, in one of three kinds; applied, reverted, saved and loaded."""

from __future__ import annotations

import hashlib
import importlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from lasertri.data.files import parsed_json
from lasertri.edit.spectrum import Spectrum
from lasertri.errors import LasertriError
from lasertri.measure.protocol import SampleBatch
from lasertri.model.parallel import here
from lasertri.model.targets import Target
from lasertri.support.paths import check_path
from lasertri.support.shown import reason, shown

CONFIG_NAME, FACTORS_NAME = "lasertri_config.json", "lasertri_edit.safetensors"
KINDS = {  # by the name that its description gives
    "truncate": ("lasertri.edit.truncation", "Truncation"),
    "step": ("lasertri.edit.step", "Step"),
    "shrink": ("lasertri.edit.shrink", "Shrink"),
}


class Edit(ABC):
    """What is changed in a model.

    Attributes:
        content: name of the file with its tensors.
    """

    content: ClassVar[str] = FACTORS_NAME

    @property
    @abstractmethod
    def targets(self) -> Sequence[Target]:
        """The matrices that it changes."""

    @property
    def dense(self) -> bool:
        """Whether the edited model is saved as a whole, if all of it is here; else the edit alone is, for its base."""
        return True

    def place(self, number: int, *, beside: bool = True) -> str:
        """Where in an adaptation's folder the edit stands that was found as number 1, 2, …; `beside` a checkpoint?"""
        return "" if number == 1 else f"edit-{number}"

    @abstractmethod
    def to_dict(self) -> dict[str, object]:
        """How it is named in reports."""

    @abstractmethod
    def apply(self, model: nn.Module) -> None:
        """Write the edit into the model's weights.

        Raises:
            LasertriError: the model's weights are not those that the edit was made of.
        """

    @abstractmethod
    def applied(self, model: nn.Module) -> AbstractContextManager[None]:
        """Within, the model answers as it will once the edit is saved; then it is as before, bit for bit."""

    @abstractmethod
    def save(self, directory: str | Path) -> None:
        """Write the edit alone, with `lasertri_config.json` to say what it is."""

    def singular_values(self, model: nn.Module) -> list[Spectrum]:
        """Those of the matrices that it changes most, as far as they are soon had; the model is without the edit."""
        return []

    def check(self, model: nn.Module, directory: Path, batch: SampleBatch) -> None:  # noqa: B027 (most need none)
        """Whether what was saved, read back by whoever will read it, gives what was measured.

        Raises:
            LasertriError: it does not.
        """

    @staticmethod
    def load(directory: str | Path) -> Edit:
        """Read what `save` wrote.

        Raises:
            LasertriError: a file is missing, damaged, or was changed since it was written.
        """
        check_path("a folder with a saved edit", directory)
        config = read_config(Path(directory) / CONFIG_NAME)
        kind = config.get("kind", "truncate")
        if not isinstance(kind, str) or kind not in KINDS:
            raise LasertriError(
                f"{Path(directory) / CONFIG_NAME}: expected a kind of edit among {list(KINDS)}, got {shown(kind)}; a "
                "later lasertri wrote it, upgrade"
            )
        module, name = KINDS[kind]
        cls = getattr(importlib.import_module(module), name)
        _check_unchanged(Path(directory), config, Path(directory) / cls.content)
        found: Edit = cls.read(Path(directory), config)
        return found


@contextmanager
def all_applied(edits: Sequence[Edit], model: nn.Module) -> Iterator[None]:
    """Apply several edits within, each of another matrix."""
    with ExitStack() as stack:
        for edit in edits:
            stack.enter_context(edit.applied(model))
        yield


@contextmanager
def replaced(target: Target, model: nn.Module, weight: Tensor) -> Iterator[None]:
    """Give a target another weight within, of a sharded one what is here, then restore its own bit for bit."""
    stored = here(target.parameter(model))
    original = target.view(stored).clone()
    try:
        target.write(stored, weight)
        yield
    finally:
        target.write(stored, original)


@contextmanager
def weights_in_place(model: nn.Module, targets: Iterable[Target], edited: Callable[[Target], Tensor]) -> Iterator[None]:
    """Give many targets other weights within, see `replaced`; their own are kept meanwhile."""
    with ExitStack() as stack:
        for target in targets:
            stack.enter_context(replaced(target, model, edited(target)))
        yield


def write_config(path: Path, config: dict[str, Any], content: Path) -> None:
    """Write an edit's description, with a checksum of it and of the file beside it."""
    config = config | {"sha256": _checksum(config, content)}
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _check_unchanged(directory: Path, config: dict[str, Any], content: Path) -> None:
    """Raise unless description and file are as they were written."""
    own = {name: value for name, value in config.items() if name != "sha256"}
    try:
        found = _checksum(own, content)
    except OSError as error:
        raise LasertriError(f"{content}: expected an edit's tensors, but {reason(error)}; copy it again") from error
    if found != config.get("sha256"):
        raise LasertriError(f"{directory}: the edit was changed after it was written; adapt again or copy it again")


def read_config(path: Path) -> dict[str, Any]:
    """What an edit's folder says that it is."""
    if not path.exists():
        raise LasertriError(
            f"{path.parent}: expected a folder with a saved edit, found no {path.name}; where no edit was accepted "
            "there is none"
        )
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise LasertriError(
            f"{path}: expected the description of an edit, but it cannot be read: {reason(error)}"
        ) from error
    config = parsed_json(text, path, expected="the description of an edit")
    if not isinstance(config, dict):
        raise LasertriError(f"{path}: expected a JSON object that describes an edit")
    return config


def _checksum(config: dict[str, Any], factors: Path) -> str:
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode() + factors.read_bytes()).hexdigest()
