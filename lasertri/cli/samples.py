"""Where samples come from: a file, a task of the papers, or one of lm-evaluation-harness."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lasertri.data.files import Fields
from lasertri.data.papers.registry import PROTOCOLS, TASKS
from lasertri.errors import LasertriError
from lasertri.support.options import Option, nearest
from lasertri.support.shown import shown

if TYPE_CHECKING:
    from lasertri.data.sample import Sample

LM_EVAL = "lm_eval:"  # begins the --task that is one of lm-evaluation-harness


@dataclass(frozen=True)
class Source:
    """Which samples: those of --data or of --task."""

    data: Annotated[Path | None, Option("Samples: a jsonl, csv or parquet file.", section="Samples")] = None
    task: Annotated[
        str,
        Option(
            f"A task by name instead of --data: see lasertri ls, or {LM_EVAL}NAME of lm_eval.",
            section="Samples",
            suggested=(*TASKS, LM_EVAL),
        ),
    ] = ""
    data_dir: Annotated[
        Path | None, Option("Folder with the files of --task; by default the hub.", section="Samples")
    ] = None
    include_path: Annotated[
        Path | None,
        Option("Folder of lm_eval tasks. Code in it runs: give only one you trust.", section="Samples"),
    ] = None
    protocol: Annotated[
        str,
        Option("Of --task; laser: with the bugs of LASER's code, to compare.", section="Samples", names=PROTOCOLS),
    ] = "corrected"

    def __post_init__(self) -> None:
        if (self.data is None) == (not self.task):
            got = "both" if self.task else "neither"
            raise typer.BadParameter(f"expected either --data or --task, got {got}")
        of_papers = self.data_dir is not None or self.protocol != "corrected"
        if self.data is not None and (of_papers or self.include_path is not None):
            raise typer.BadParameter("--data-dir, --include-path and --protocol go with --task, not with --data")
        if self.of_lm_eval and of_papers:
            raise typer.BadParameter("--data-dir and --protocol go with the papers' tasks, not with those of lm_eval")
        if not self.of_lm_eval and self.include_path is not None:
            raise typer.BadParameter(f"--include-path goes with --task {LM_EVAL}NAME")
        if self.task and not self.of_lm_eval and self.task not in TASKS:
            raise typer.BadParameter(
                f"expected a task among {list(TASKS)} or {LM_EVAL}NAME, got {shown(self.task)}"
                + nearest(self.task, TASKS)
            )

    @property
    def files(self) -> tuple[Path | None, ...]:
        """Files and folders that they are read from."""
        return self.data, self.data_dir, self.include_path

    @property
    def name(self) -> str:
        """What they are called, without a folder."""
        return self.task if self.data is None else self.data.name

    @property
    def datasets(self) -> tuple[str, ...]:
        """Their ids on the hub, where these are known."""
        return (TASKS[self.task].source.repository,) if self.task in TASKS else ()

    def require_beside(self, held_out: Path | None) -> None:
        """Refuse other samples beside a task's, which are divided."""
        if held_out is not None and self.data is None:
            raise typer.BadParameter("--held-out goes with --data, not with --task, which is divided")

    @property
    def of_lm_eval(self) -> bool:
        """Whether the task is one of lm-evaluation-harness, which writes its prompts for a chat by itself."""
        return self.task.startswith(LM_EVAL)

    def samples(self, model: str, fields: Fields, *, revision: str | None, chat: bool) -> list[Sample]:
        """Them, as this model is asked."""
        if self.data is not None:
            from lasertri.data.files import as_samples

            return as_samples(self.data, as_typed(fields))
        left_out = Fields(group=fields.group) if self.of_lm_eval else Fields()
        if fields != left_out:
            raise typer.BadParameter(
                "--prompt, --choices, --label, --completion, --match and --window go with --data, not with --task; "
                f"--group goes with both --data and --task {LM_EVAL}NAME"
            )
        from lasertri.data.papers.registry import described, task_samples
        from lasertri.model.loading import checkpoint_kind, load_tokenizer

        if self.of_lm_eval:
            from lasertri.data.lm_eval import lm_eval_samples

            found = lm_eval_samples(
                self.task.removeprefix(LM_EVAL),
                include_path=self.include_path,
                group=fields.group,
                chat=load_tokenizer(model, revision=revision) if chat else None,
            )
        else:
            kind, _ = checkpoint_kind(model, revision=revision)
            found = task_samples(
                self.task,
                masked=kind == "masked",
                data_dir=self.data_dir,
                protocol=self.protocol,
                tokenizer=load_tokenizer(model, revision=revision),
            )
        typer.echo(described(self.task, found), err=True)
        return found


@dataclass(frozen=True)
class TextSource(Source):
    """Which text a model is run on: a file's, that of samples, or the neutral one."""

    text: Annotated[
        Path | None, Option("Plain text, 1,000 tokens or more; by default one of the package's own.", section="Text")
    ] = None

    def __post_init__(self) -> None:
        if self.data is not None or self.task:
            super().__post_init__()
            if self.text is not None:
                raise typer.BadParameter("expected one of --text, --data and --task, got --text and samples")

    @property
    def files(self) -> tuple[Path | None, ...]:
        """See `Source`."""
        return *super().files, self.text

    @property
    def name(self) -> str:
        """See `Source`."""
        return (
            super().name
            if self.data is not None or self.task
            else "neutral text"
            if self.text is None
            else self.text.name
        )

    def read(self, model: str, fields: Fields, *, revision: str | None) -> str | None:
        """The text, None for the neutral one; of samples their prompts with the right answers.

        Raises:
            LasertriError: a file that cannot be read.
        """
        if self.data is not None or self.task:
            return "\n\n".join(s.text for s in self.samples(model, fields, revision=revision, chat=False))
        if self.text is None:
            return None
        try:
            return self.text.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise LasertriError(f"{self.text}: expected a text file in UTF-8: {error}") from error


def as_typed(fields: Fields) -> Fields:
    r"""With line breaks for the two characters \n, which a shell passes on."""
    templates = (fields.prompt.replace(r"\n", "\n"), fields.completion.replace(r"\n", "\n"))
    return dataclasses.replace(fields, prompt=templates[0], completion=templates[1])
