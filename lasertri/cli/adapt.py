"""`lasertri adapt`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lasertri.cli import options
from lasertri.cli.app import command, print_result
from lasertri.cli.config import Config
from lasertri.cli.launched import launched, rank, world_size
from lasertri.cli.loading import Loading
from lasertri.cli.pushing import Pushing, push
from lasertri.cli.samples import Source, as_typed
from lasertri.cli.typed import command_line
from lasertri.data.files import Fields
from lasertri.search.settings import Settings
from lasertri.support.output_folder import OutputFolder

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from lasertri.data.sample import Sample
    from lasertri.result.adaptation import Adaptation
    from lasertri.support.hub import Repository


@command(
    "lasertri adapt Qwen/Qwen3-0.6B --data train.jsonl -o adapted",
    "lasertri adapt Qwen/Qwen3-0.6B --data train.jsonl -o merged --merge",
    "lasertri adapt Qwen/Qwen3-0.6B --data train.jsonl -o adapted --push me/adapted",
    "torchrun --nproc-per-node 4 -m lasertri adapt Qwen/Qwen3-0.6B --data train.jsonl -o adapted",
    "torchrun --nproc-per-node 4 -m lasertri adapt Qwen/Qwen3-32B --tensor-parallel --data train.jsonl -o adapted",
    "lasertri adapt EleutherAI/gpt-j-6b --task fever --strategy laser-100-grads --accept best",
)
def adapt(
    model: options.Model,
    source: Source,
    fields: Fields,
    loading: Loading,
    settings: Settings,
    pushing: Pushing,
    held_out: Annotated[
        Path | None,
        typer.Option(help="Samples to report on; then all rows of --data may calibrate.", rich_help_panel="Samples"),
    ] = None,
    tensor_parallel: options.TensorParallel = False,
    output: options.Output = None,
    save: options.Save = "checkpoint",
    overwrite: options.Overwrite = False,
    log_samples: options.LogSamples = False,
    resume: options.Resume = True,
    as_json: options.Json = False,
    config: Config = None,
) -> None:
    """Find the edit that helps MODEL on the task in --data, or named by --task, if one does.

    By default it is one step of all MLP layers down a single gradient, its
    direction and length chosen on samples that took no part in making it. With
    --edit truncate, or an option of that section, it is the truncation of one
    matrix that helps most.
    """
    if log_samples and output is None:
        raise typer.BadParameter("--log-samples goes with -o, the folder they are written in")
    if save == "factored" and output is None:
        raise typer.BadParameter("--save goes with -o, the folder it is saved in")
    if save == "factored" and settings.edit != "truncate":
        raise typer.BadParameter(f"--save factored goes with a truncation, not with a {settings.edit}")
    if tensor_parallel:
        _require_launched(loading, save)
    source.require_beside(held_out)
    pushing.require(output)
    from lasertri.data.files import as_samples
    from lasertri.support.sharing import once, shared_by, together

    with launched(parts=tensor_parallel) as group:
        with shared_by(group):
            folder = None
            if output is not None:
                inputs = [model, *source.files, held_out, config]
                folder = once(lambda: OutputFolder(output, overwrite=overwrite, inputs=inputs))
            repository = once(lambda: pushing.checked(model, overwrite=overwrite))
            samples = together(lambda: source.samples(model, fields, revision=loading.revision, chat=settings.chat))
            others = None if held_out is None else together(lambda: as_samples(held_out, as_typed(fields)))
            if tensor_parallel:
                once(lambda: loading.require_parts(model))
        if source.of_lm_eval:
            settings = dataclasses.replace(settings, chat=False)  # its prompts are written for a chat by now
        run(
            model, samples, others, settings, loading, folder, as_json,
            data=source.name, datasets=source.datasets, factored=save == "factored", log_samples=log_samples,
            resume=resume, repository=repository, group=group, tensor_parallel=tensor_parallel,
        )  # fmt: skip


def _require_launched(loading: Loading, save: str) -> None:
    """Refuse what does not go with parts of a model."""
    if world_size() == 1:
        raise typer.BadParameter(
            "--tensor-parallel goes with several processes, got one; start them with torchrun --nproc-per-node 2 "
            "-m lasertri adapt …"
        )
    if loading.device is not None:
        raise typer.BadParameter("--tensor-parallel gives each process a GPU, if there are any; leave --device out")
    if save == "factored":
        raise typer.BadParameter(
            "--tensor-parallel saves the edit alone; leave --save out, and have lasertri apply --save factored write it"
        )


def run(
    model: str,
    samples: Sequence[Sample],
    held_out: Sequence[Sample] | None,
    settings: Settings,
    loading: Loading,
    output: OutputFolder | None,
    as_json: bool,
    *,
    factored: bool = False,
    log_samples: bool = False,
    resume: bool = True,
    data: str,
    datasets: Sequence[str] = (),
    repository: Repository | None = None,
    group: ProcessGroup | None = None,
    tensor_parallel: bool = False,
) -> Adaptation:
    """Adapt, save, print; what would keep the output from being written is found before the long work.

    Args:
        tensor_parallel: whether the processes of the group hold parts of the model.
    """
    from lasertri.edit.adapter import require_peft
    from lasertri.factors.journals import journal_folder
    from lasertri.method import adapt
    from lasertri.result.card import Made
    from lasertri.support.sharing import once, shared_by, together

    if output is not None and settings.edit == "step":
        require_peft()
    if rank() > 0:
        settings = dataclasses.replace(settings, progress=False)
    dense = settings.edit != "step" or settings.merge
    with shared_by(group, sharded=tensor_parallel):
        loaded, tokenizer = together(lambda: loading.load(model, plain=dense, tensor_parallel=tensor_parallel))
        if output is not None and dense and not tensor_parallel:
            once(lambda: output.require(sum(p.nbytes for p in loaded.parameters())))
        result = adapt(
            loaded,
            samples,
            held_out=held_out,
            tokenizer=tokenizer,
            journal=None if output is None or tensor_parallel else journal_folder(),
            resume=resume,
            group=None if tensor_parallel else group,
            **settings.keywords,
        )
    pushed_to = "" if repository is None else repository.name
    result = dataclasses.replace(result, made=Made(command_line(), data, datasets, pushed_to))
    saving = {"factored": factored, "log_samples": log_samples}
    with shared_by(group):
        once(lambda: finish(result, output, as_json, repository=repository, **saving))
        result.journal.delete()
    return result


def finish(
    result: Adaptation,
    output: OutputFolder | None,
    as_json: bool,
    *,
    factored: bool = False,
    log_samples: bool = False,
    repository: Repository | None = None,
) -> None:
    """Save, print, push."""
    from lasertri.cli import tables
    from lasertri.cli.saved import how_to_load

    try:
        if output is not None:
            result.save(output, factored=factored, log_samples=log_samples)
    finally:  # the figures are worth as much without a folder
        measured = result.to_dict()
        print_result(measured, as_json, str(result), lambda: tables.summary(measured))
    if output is not None:
        typer.echo("\n".join(how_to_load(result, output.given, factored=factored)), err=True)
        if result.edits:
            push(repository, output)
        elif repository is not None:
            typer.echo(f"nothing pushed to {repository.name}: no edit was accepted", err=True)
