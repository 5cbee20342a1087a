"""Where samples come from: a file, a task of the papers, or one of lm-evaluation-harness."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from lasertri.cli.app import usage
from lasertri.cli.options import LM_EVAL

if TYPE_CHECKING:
    from lasertri.data.files import Fields
    from lasertri.data.sample import Sample


def fields_of(prompt: str, choices: str, label: str, completion: str, group: str, match: str, window: int) -> Fields:
    """The fields that these options name."""
    from lasertri.data.files import Fields

    # a shell passes the two characters \\n on; in a template they mean a line break
    with usage():
        return Fields(
            prompt.replace(r"\n", "\n"), choices, label, completion.replace(r"\n", "\n"), group, match, window
        )


def samples_of(
    model: str,
    *,
    revision: str | None,
    data: Path | None,
    fields: Fields,
    task: str,
    data_dir: Path | None,
    protocol: str,
    include_path: Path | None,
    chat: bool,
) -> list[Sample]:
    """The samples of --data or of --task, whichever is given; lm_eval writes its prompts for a chat by itself."""
    from lasertri.data.files import Fields, as_samples
    from lasertri.data.papers.registry import TASKS, described, task_samples
    from lasertri.model.loading import checkpoint_kind, load_tokenizer

    if (data is None) == (not task):
        raise typer.BadParameter("expected either --data or --task, got " + ("both" if task else "neither"))
    if data is not None:
        if data_dir is not None or include_path is not None or protocol != "corrected":
            raise typer.BadParameter("--data-dir, --include-path and --protocol go with --task, not with --data")
        return as_samples(data, fields)
    if task.startswith(LM_EVAL):
        from lasertri.data.lm_eval import lm_eval_samples

        if data_dir is not None or protocol != "corrected" or fields != Fields(group=fields.group):
            raise typer.BadParameter(
                "of the options for samples --group, --include-path and --chat go with lm_eval tasks"
            )
        tokenizer = load_tokenizer(model, revision=revision) if chat else None
        name = task.removeprefix(LM_EVAL)
        found = lm_eval_samples(name, include_path=include_path, group=fields.group, chat=tokenizer)
        typer.echo(described(task, found), err=True)
        return found
    if include_path is not None:
        raise typer.BadParameter(f"--include-path goes with --task {LM_EVAL}NAME")
    if task not in TASKS:
        raise typer.BadParameter(f"expected a task among {list(TASKS)} or {LM_EVAL}NAME, got {task!r}")
    if fields != Fields():
        raise typer.BadParameter(
            "--prompt, --choices, --label, --completion, --group, --match and --window go with --data, not with --task"
        )
    tokenizer = load_tokenizer(model, revision=revision)
    kind, _ = checkpoint_kind(model, revision=revision)
    found = task_samples(task, masked=kind == "masked", data_dir=data_dir, protocol=protocol, tokenizer=tokenizer)
    typer.echo(described(task, found), err=True)
    return found
