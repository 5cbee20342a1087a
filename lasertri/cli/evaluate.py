"""`lasertri eval`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from lasertri.cli import options
from lasertri.cli.app import command, print_result
from lasertri.cli.grouped import Only
from lasertri.cli.loading import Loading
from lasertri.cli.samples import Source
from lasertri.data.files import Fields
from lasertri.search.settings import Settings


@command(
    "lasertri eval adapted --data test.jsonl --json",
    "lasertri eval Qwen/Qwen3-0.6B --edit adapted --data test.jsonl",
    name="eval",
)
def evaluate_command(
    model: options.Model,
    source: Source,
    fields: Fields,
    loading: Loading,
    settings: Annotated[Settings, Only("normalize", "delimiter", "chat", "batch_size", "progress")],
    edit: Annotated[Path | None, typer.Option(help="Folder with a saved edit to measure MODEL with.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Measure the first samples alone.")] = None,
    as_json: options.Json = False,
) -> None:
    """Measure MODEL on all samples of --data or --task: as it is, or with a saved edit.

    MODEL may be the folder of an adapter; its base is loaded, and the adapter
    measured with it.
    """
    from lasertri.cli.saved import base_of_adapter, load_edits

    base = base_of_adapter(Path(model), otherwise=f"give the model as MODEL, and --edit {model}")
    if base is not None:
        if edit is not None:
            raise typer.BadParameter(f"--edit goes with a model, and {model} is an edit itself")
        edit, (model, revision) = Path(model), base
        loading = dataclasses.replace(loading, revision=loading.revision or revision)
    edits = [] if edit is None else load_edits(edit)
    samples = source.samples(model, fields, revision=loading.revision, chat=settings.chat)[:limit]
    from lasertri.edit.edit import all_applied
    from lasertri.language.samples import EncodedSamples
    from lasertri.measure.evaluate import evaluate
    from lasertri.result.summary import measurement

    loaded, tokenizer = loading.load(model)
    encoded = EncodedSamples(
        samples,
        model=loaded,
        tokenizer=tokenizer,
        delimiter=settings.delimiter,
        chat=settings.chat and not source.of_lm_eval,
        batch_size=settings.batch_size,
    )
    progress = "eval" if settings.progress else None
    with all_applied(edits, loaded):
        typer.echo(f"the first sample is asked so: {encoded.asked}", err=True)
        measured = evaluate(loaded, encoded, normalize=settings.normalize, progress=progress)
    if measured.warning:
        typer.echo(measured.warning, err=True)
    result = measured.to_dict()
    print_result(result, as_json, f"{measurement(result)}, {result['n']} samples")
