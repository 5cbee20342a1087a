"""`--push`: the folder that a command wrote, on the Hugging Face hub."""

from __future__ import annotations

import logging
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lasertri.support.options import Option
from lasertri.support.shown import shown

if TYPE_CHECKING:
    from lasertri.support.hub import Repository
    from lasertri.support.output_folder import OutputFolder


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pushing:
    """Whether the folder goes to the hub, too."""

    push: Annotated[
        str | None,
        Option(
            "USER/NAME on the Hugging Face hub: put the folder there, too, once it is written; not what shows samples.",
            section="Output",
        ),
    ] = None
    private: Annotated[
        bool, Option("Make that repository for yourself alone.", section="Output", flags=("--private",))
    ] = False

    def __post_init__(self) -> None:
        if self.private and self.push is None:
            raise typer.BadParameter("--private goes with --push")

    def require(self, output: Path | None) -> None:
        """Refuse to push where nothing is written."""
        if self.push is not None and output is None:
            raise typer.BadParameter("--push goes with -o, the folder that is pushed")

    def checked(self, model: str, *, overwrite: bool) -> Repository | None:
        """Where it is to go, if anywhere.

        Raises:
            LasertriError: the hub would not take it.
        """
        if self.push is None:
            return None
        from lasertri.support.hub import Repository

        if Path(model).exists():
            logger.warning("%s is on this machine alone: what is pushed will name its base by this path", shown(model))
        return Repository(self.push, private=self.private, overwrite=overwrite)


def push(repository: Repository | None, folder: OutputFolder) -> None:
    """Put what was written there, and say where it is.

    Raises:
        LasertriError: the hub did not take it; the message says how to try again.
    """
    if repository is None:
        return
    from lasertri.support.hub import KEPT_HERE

    words = ["hf", "upload", repository.name, str(folder.given), *(["--private"] if repository.private else [])]
    words += [word for name in KEPT_HERE for word in ("--exclude", name)]
    again = f"{folder.given} is whole; try again by {shlex.join(words)}"
    typer.echo(f"pushed to {repository.push(folder.path, again=again)}", err=True)
