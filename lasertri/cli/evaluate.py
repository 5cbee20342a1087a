"""`lasertri eval`."""

from __future__ import annotations

from typing import Annotated

import typer

from lasertri.cli import options
from lasertri.cli.app import command, print_result
from lasertri.cli.grouped import Only
from lasertri.cli.loading import Loading
from lasertri.cli.samples import Source
from lasertri.data.files import Fields
from lasertri.search.settings import Settings


@command("lasertri eval adapted --data test.jsonl --json", name="eval")
def evaluate_command(
    model: options.Model,
    source: Source,
    fields: Fields,
    loading: Loading,
    settings: Annotated[Settings, Only("normalize", "delimiter", "chat", "batch_size", "progress")],
    limit: Annotated[int | None, typer.Option(min=1, help="Measure the first samples alone.")] = None,
    as_json: options.Json = False,
) -> None:
    """Measure MODEL on all samples of --data or --task."""
    samples = source.samples(model, fields, revision=loading.revision, chat=settings.chat)[:limit]
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
    result = evaluate(loaded, encoded, normalize=settings.normalize, progress=progress).to_dict()
    print_result(result, as_json, f"{measurement(result)}, {result['n']} samples")
