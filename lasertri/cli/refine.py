"""`lasertri refine`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from lasertri.cli import options
from lasertri.cli.adapt import finish
from lasertri.cli.app import command
from lasertri.cli.grouped import Only
from lasertri.cli.loading import Loading
from lasertri.cli.pushing import Pushing
from lasertri.cli.samples import Source, as_typed
from lasertri.cli.typed import command_line
from lasertri.data.files import Fields
from lasertri.search.settings import Settings
from lasertri.support.output_folder import OutputFolder

TAKEN = (
    *("calibration", "held_out_limit", "accept", "max_kl", "normalize", "delimiter", "chat", "seed"),
    *("batch_size", "memory_budget", "progress"),
)


@command("lasertri refine adapter --data train.jsonl -o refined")
def refine(
    adapter: Annotated[Path, typer.Argument(help="Folder with a LoRA adapter that peft wrote.", metavar="ADAPTER")],
    source: Source,
    fields: Fields,
    loading: Loading,
    settings: Annotated[Settings, Only(*TAKEN)],
    pushing: Pushing,
    base: Annotated[
        str | None,
        typer.Option(help="The model that it belongs to; by default the one it names.", rich_help_panel="Model"),
    ] = None,
    held_out: Annotated[
        Path | None,
        typer.Option(help="Samples to report on; then all rows of --data may calibrate.", rich_help_panel="Samples"),
    ] = None,
    output: options.Output = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Move the singular values of what a LoRA ADAPTER adds against their gradients, if that helps.

    One backward pass says how the loss depends on each; how far they move is
    chosen on samples that took no part in it. What is written is an adapter of the
    same rank, and what it is compared to is the adapter as it was.
    """
    from lasertri.cli.saved import base_of_adapter
    from lasertri.data.files import as_samples
    from lasertri.errors import LasertriError

    source.require_beside(held_out)
    pushing.require(output)
    if base is None:
        named = base_of_adapter(adapter, otherwise="give the model as --base")
        if named is None:
            found = "a whole model" if (adapter / "config.json").exists() else "no adapter_config.json"
            raise LasertriError(f"{adapter}: expected a folder with a LoRA adapter, found {found}; name such a folder")
        base, revision = named
        loading = dataclasses.replace(loading, revision=loading.revision or revision)
    folder = None
    if output is not None:
        folder = OutputFolder(output, overwrite=overwrite, inputs=[adapter, base, *source.files, held_out])
    repository = pushing.checked(base, overwrite=overwrite)
    samples = source.samples(base, fields, revision=loading.revision, chat=settings.chat)
    others = None if held_out is None else as_samples(held_out, as_typed(fields))
    if source.of_lm_eval:
        settings = dataclasses.replace(settings, chat=False)  # its prompts are written for a chat by now
    loaded, tokenizer = loading.load(base)

    from lasertri.method import refine
    from lasertri.result.card import Made

    given = {name: getattr(settings, name) for name in TAKEN}
    result = refine(adapter, samples, model=loaded, held_out=others, tokenizer=tokenizer, **given)
    made = Made(command_line(), source.name, source.datasets, pushing.push or "")
    finish(dataclasses.replace(result, made=made), folder, as_json, repository=repository)
