"""`lasertri adapt`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer

from lasertri.cli import options
from lasertri.cli.app import app, print_result, reported, usage
from lasertri.cli.loading import load
from lasertri.cli.samples import fields_of, samples_of
from lasertri.search.settings import BLOCK_COUNTS, Settings
from lasertri.search.strategies import DEFAULT

if TYPE_CHECKING:
    from lasertri.data.sample import Sample
    from lasertri.result.adaptation import Adaptation

Number = TypeVar("Number", int, float)


@app.command()
@reported
def adapt(
    model: options.Model,
    data: options.Data = None,
    task: options.TaskName = "",
    data_dir: options.DataDir = None,
    include_path: options.IncludePath = None,
    protocol: options.Protocol = "corrected",
    held_out: Annotated[
        Path | None,
        options.samples(help="Samples to report on; then all rows of --data may calibrate."),
    ] = None,
    output: options.Output = None,
    prompt: options.Prompt = "{prompt}",
    choices: options.Choices = "choices",
    label: options.Label = "label",
    completion: options.Completion = "{completion}",
    group: options.Group = "group",
    match: options.Match = "tokens",
    window: options.Window = 0,
    revision: options.Revision = None,
    dtype: options.Dtype = "auto",
    device: options.Device = None,
    targets: options.Targets = None,
    count: Annotated[int, options.search("--count", "-q", help="Targets to measure, best score first.")] = 5,
    strategy: Annotated[
        str,
        options.search(help="What is scored and measured; see lasertri ls.", metavar="NAME"),
    ] = DEFAULT,
    ratios: Annotated[
        str,
        options.search(help="Retained ratios ρ, such as 0.5,0.1; by default the strategy's."),
    ] = "",
    blocks: Annotated[
        str,
        options.search(
            help=f"Numbers of row blocks K; by default the strategy's, {BLOCK_COUNTS} or 1.",
        ),
    ] = "",
    svd: Annotated[
        Literal["exact", "laser-compat"],
        options.search(
            help="laser-compat: LASER's randomised SVD and rounding of ranks, for strategies of one block.",
        ),
    ] = "exact",
    scoring_blocks: Annotated[int, options.search(help="The K that targets are ranked at.")] = 8,
    race: Annotated[
        bool,
        options.search(help="Stop measuring a candidate that the leading one beats beyond doubt."),
    ] = True,
    calibration: Annotated[int, options.search(help="Samples for gradients and trials.")] = 100,
    held_out_limit: Annotated[int, options.search(help="Most samples held out.")] = 2000,
    score: Annotated[Literal["taylor", "paper"], options.search(help="What ranks the targets.")] = "taylor",
    accept: Annotated[
        Literal["test", "best"],
        options.search(help="test: only if more than luck; best: the papers' rule."),
    ] = "test",
    max_edits: Annotated[
        int,
        options.search(help="Most edits, each found on the model with those before it."),
    ] = 1,
    normalize: options.Normalize = False,
    delimiter: options.Delimiter = " ",
    chat: options.Chat = False,
    seed: Annotated[int, options.search(help="Of the split and of the test.")] = 0,
    batch_size: options.BatchSize = 16,
    backend: Annotated[
        Literal["auto", "gram", "triton", "cuda", "reference"],
        options.search(help="Of the ops; see lasertri info."),
    ] = "auto",
    memory_budget: options.MemoryBudget = 4.0,
    save: options.Save = "checkpoint",
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Find the single truncation that helps MODEL most on the task in --data, or named by --task, if any does."""
    with usage():
        settings = Settings(
            strategy=strategy,
            targets=targets,
            count=count,
            ratios=_numbers(ratios, float, "--ratios"),
            blocks=_numbers(blocks, int, "--blocks"),
            svd=svd,
            scoring_blocks=scoring_blocks,
            race=race,
            calibration=calibration,
            held_out_limit=held_out_limit,
            score=score,
            accept=accept,
            max_edits=max_edits,
            normalize=normalize,
            delimiter=delimiter,
            chat=chat and not task.startswith(options.LM_EVAL),
            seed=seed,
            batch_size=batch_size,
            backend=backend,
            memory_budget=int(memory_budget * 2**30),
        )
    from lasertri.data.files import as_samples

    if save == "factored" and output is None:
        raise typer.BadParameter("--save goes with -o, the folder it is saved in")
    if held_out is not None and data is None:
        raise typer.BadParameter("--held-out goes with --data, not with --task, which is divided")
    fields = fields_of(prompt, choices, label, completion, group, match, window)
    samples = samples_of(
        model,
        revision=revision,
        data=data,
        fields=fields,
        task=task,
        data_dir=data_dir,
        protocol=protocol,
        include_path=include_path,
        chat=chat,
    )
    others = None if held_out is None else as_samples(held_out, fields)
    source: dict[str, Any] = {"factored": save == "factored", "revision": revision, "dtype": dtype, "device": device}
    run(model, samples, others, settings, output, overwrite, as_json, **source)


def run(
    model: str,
    samples: Sequence[Sample],
    held_out: Sequence[Sample] | None,
    settings: Settings,
    output: Path | None,
    overwrite: bool,
    as_json: bool,
    *,
    factored: bool = False,
    revision: str | None = None,
    dtype: str = "auto",
    device: str | None = None,
) -> Adaptation:
    """Adapt, print, save; the output folder is checked before the long work."""
    from lasertri.method import adapt
    from lasertri.model.loading import checkpoint_files
    from lasertri.support.atomic_files import check_writable

    if output is not None:
        check_writable(output, overwrite=overwrite)
    loaded, tokenizer = load(model, revision, dtype, device)
    if output is not None:
        check_writable(output, needed=sum(p.nbytes for p in loaded.parameters()), overwrite=overwrite)
    files = checkpoint_files(model, revision=revision)
    result = adapt(loaded, samples, held_out=held_out, tokenizer=tokenizer, files=files, **vars(settings))
    print_result(result.to_dict(), as_json, str(result))
    if output is not None:
        result.save(output, overwrite=overwrite, factored=factored)
        typer.echo(f"wrote {output}", err=True)
    return result


def _numbers(text: str, kind: Callable[[str], Number], option: str) -> tuple[Number, ...]:
    try:
        return tuple(kind(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise typer.BadParameter(f"expected numbers separated by commas, got {text!r}", param_hint=option) from error
