"""The command line. Results go to standard output, everything else to standard error."""

from __future__ import annotations

import functools
import json
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, ParamSpec, TypeVar

import typer

from lasertri.errors import LasertriError
from lasertri.settings import BLOCK_COUNTS, Settings
from lasertri.strategies import DEFAULT, STRATEGIES
from lasertri.version import __version__

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lasertri.adaptation import Adaptation
    from lasertri.tasks import Sample
    from lasertri.tasks.files import Fields

DEMO_TASK = """\
A small GPT-J, trained on sequences where "?" is followed by the sequence's own symbol only half of the time, and by the
noise "!" otherwise. It learnt two things: to recall what followed "?" before, and to expect "!" after any "?". The
noise is gone now: which truncation makes it recall?
"""
DEMO_WHY = """
Why this works: recall is the work of attention; the expectation of "!", the same for every sequence, sits in the MLPs.
Cutting the smaller singular values of that one MLP matrix removes the generic answer and leaves the recall. It is a
mechanism the model was trained to have (arXiv 2406.03068), so do not expect gains of this size on every task.
"""

P = ParamSpec("P")
Number = TypeVar("Number", int, float)

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Adapt a pretrained transformer to a task without training it: score every weight matrix with one backward "
    "pass, truncate the best few, keep the best single edit if it is more than luck.",
)

Model = Annotated[str, typer.Argument(help="A Hugging Face hub id or a local folder.")]
Data = Annotated[Path, typer.Option(help="Samples: a jsonl, csv or parquet file.")]
Prompt = Annotated[
    str,
    typer.Option(
        help=r"Template over a row's fields, such as 'Q: {question}\nA:'; <mask> in it is where a masked model answers."
    ),
]
Choices = Annotated[str, typer.Option(help="Field that lists the choices, or a JSON list that all rows share.")]
Label = Annotated[str, typer.Option(help="Field with the right choice: its index or its text.")]
Completion = Annotated[str, typer.Option(help="Template of the text that should follow, for rows without choices.")]
Group = Annotated[str, typer.Option(help="Field that keeps related rows on one side of the split.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")]
DtypeName = Literal["auto", "float32", "bfloat16", "float16"]
Dtype = Annotated[DtypeName, typer.Option(help="auto is the checkpoint's own.")]
Device = Annotated[str | None, typer.Option(help="Where to run; CUDA if torch has it.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Output = Annotated[Path | None, typer.Option("-o", "--output", help="Folder for checkpoint, edit and report.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output folder.")]
Normalize = Annotated[bool, typer.Option("--normalize", help="Divide a choice's log-probability by its characters.")]
Delimiter = Annotated[str, typer.Option(help="Between prompt and answer, where neither has white space.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Rows run through the model at once.")]


def reported(command: Callable[P, None]) -> Callable[P, None]:
    """Mistakes of the user end with one sentence and exit code 1; an interrupt with 130."""

    @functools.wraps(command)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except LasertriError as error:
            typer.echo(f"lasertri: {error}", err=True)
            raise typer.Exit(1) from error
        except RuntimeError as error:
            if "out of memory" not in str(error):
                raise
            typer.echo("lasertri: the device is out of memory; choose a smaller --batch-size", err=True)
            raise typer.Exit(1) from error
        except KeyboardInterrupt:
            typer.echo("lasertri: interrupted; nothing was changed", err=True)
            raise typer.Exit(130) from None

    return wrapper


@app.command()
@reported
def adapt(
    model: Model,
    data: Data,
    held_out: Annotated[
        Path | None, typer.Option(help="Samples to report on; then all rows of --data may calibrate.")
    ] = None,
    output: Output = None,
    prompt: Prompt = "{prompt}",
    choices: Choices = "choices",
    label: Label = "label",
    completion: Completion = "{completion}",
    group: Group = "group",
    revision: Revision = None,
    dtype: Dtype = "auto",
    device: Device = None,
    targets: Annotated[
        str | None, typer.Option(help="Regular expression for module paths; by default every layer's MLP matrices.")
    ] = None,
    count: Annotated[int, typer.Option("--count", "-q", help="Targets to measure, best score first.")] = 5,
    strategy: Annotated[
        str, typer.Option(help="What is scored and measured: " + ", ".join(STRATEGIES) + ".", metavar="NAME")
    ] = DEFAULT,
    ratios: Annotated[str, typer.Option(help="Retained ratios ρ, such as 0.5,0.1; by default the strategy's.")] = "",
    blocks: Annotated[str, typer.Option(help="Numbers of row blocks K.")] = ",".join(map(str, BLOCK_COUNTS)),
    svd: Annotated[
        Literal["exact", "laser-compat"],
        typer.Option(help="laser-compat: LASER's randomised SVD and rounding of ranks, for strategies of one block."),
    ] = "exact",
    scoring_blocks: Annotated[int, typer.Option(help="The K that targets are ranked at.")] = 8,
    race: Annotated[
        bool, typer.Option(help="Stop measuring a candidate that the leading one beats beyond doubt.")
    ] = True,
    calibration: Annotated[int, typer.Option(help="Samples for gradients and trials.")] = 100,
    held_out_limit: Annotated[int, typer.Option(help="Most samples held out.")] = 2000,
    score: Annotated[Literal["taylor", "paper"], typer.Option(help="What ranks the targets.")] = "taylor",
    accept: Annotated[
        Literal["test", "best"], typer.Option(help="test: only if more than luck; best: the papers' rule.")
    ] = "test",
    max_edits: Annotated[int, typer.Option(help="Most edits, each found on the model with those before it.")] = 1,
    normalize: Normalize = False,
    delimiter: Delimiter = " ",
    seed: Annotated[int, typer.Option(help="Of the split and of the test.")] = 0,
    batch_size: BatchSize = 16,
    backend: Annotated[
        Literal["auto", "gram", "triton", "cuda", "reference"], typer.Option(help="Of the ops; see lasertri info.")
    ] = "auto",
    memory_budget: Annotated[float, typer.Option(min=0, max=1e6, help="GiB for FP64 workspace and factors.")] = 4.0,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Find the single truncation that helps MODEL most on the task in --data, if any does."""
    with _usage():
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
            seed=seed,
            batch_size=batch_size,
            backend=backend,
            memory_budget=int(memory_budget * 2**30),
        )
    from lasertri.tasks.files import as_samples

    fields = _fields(prompt, choices, label, completion, group)
    samples = as_samples(data, fields)
    others = None if held_out is None else as_samples(held_out, fields)
    _run(model, samples, others, settings, output, overwrite, as_json, revision=revision, dtype=dtype, device=device)


@app.command()
@reported
def demo(output: Output = None, overwrite: Overwrite = False, as_json: Json = False) -> None:
    """Adapt a small packaged model to in-context recall: no network, under a minute."""
    from lasertri.demo import MODEL_DIR
    from lasertri.demo.recall import samples

    if not as_json:
        typer.echo(DEMO_TASK)
    result = _run(str(MODEL_DIR), samples(200, seed=1), samples(1000, seed=2), Settings(), output, overwrite, as_json)
    if not as_json and result.edit is not None:
        typer.echo(DEMO_WHY)


@app.command()
@reported
def apply(
    edit: Annotated[Path, typer.Argument(help="Folder with lasertri_config.json and lasertri_edit.safetensors.")],
    model: Model,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the edited checkpoint.")],
    revision: Revision = None,
    dtype: Annotated[DtypeName, typer.Option(help="Must be the edit's.")] = "auto",
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write MODEL with a saved EDIT as a plain Hugging Face checkpoint."""
    from lasertri.artefacts import check_writable, whole_directory
    from lasertri.edit import Edit

    chosen = Edit.load(edit)
    check_writable(output, overwrite=overwrite)
    loaded, tokenizer = _load(model, revision, dtype, "cpu")
    chosen.apply(loaded)
    with whole_directory(output, overwrite=overwrite) as folder:
        loaded.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    _print({"edit": chosen.candidate.to_dict(), "output": str(output)}, as_json, f"wrote {output}")


@app.command("eval")
@reported
def evaluate_command(
    model: Model,
    data: Data,
    prompt: Prompt = "{prompt}",
    choices: Choices = "choices",
    label: Label = "label",
    completion: Completion = "{completion}",
    group: Group = "group",
    revision: Revision = None,
    dtype: Dtype = "auto",
    device: Device = None,
    normalize: Normalize = False,
    delimiter: Delimiter = " ",
    batch_size: BatchSize = 16,
    as_json: Json = False,
) -> None:
    """Measure MODEL on all samples of --data."""
    from lasertri.encode import EncodedSamples
    from lasertri.evaluate import evaluate
    from lasertri.summary import measurement
    from lasertri.tasks.files import as_samples

    samples = as_samples(data, _fields(prompt, choices, label, completion, group))
    loaded, tokenizer = _load(model, revision, dtype, device)
    encoded = EncodedSamples(samples, model=loaded, tokenizer=tokenizer, delimiter=delimiter, batch_size=batch_size)
    result = evaluate(loaded, encoded, normalize=normalize, progress="eval").to_dict()
    _print(result, as_json, f"{measurement(result)}, {result['n']} samples")


@app.command()
@reported
def info(as_json: Json = False) -> None:
    """Show versions, devices, the extension, and which backends can run or why not."""
    from lasertri.environment import backend_status, environment
    from lasertri.ops.extension import build_status

    result: dict[str, Any] = environment() | {"extension": build_status(), "backends": backend_status()}
    lines = [f"{key:12} {value}" for key, value in result.items() if isinstance(value, str | int | None)]
    lines += [f"{'device':12} {device}" for device in result["devices"]]
    lines += [f"{'extension':12} {library}: {status}" for library, status in result["extension"].items()]
    lines += [
        f"{'backend':12} {kind}: {name}, {status}"
        for kind, backends in result["backends"].items()
        for name, status in backends.items()
    ]
    _print(result, as_json, "\n".join(lines))


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
) -> None:
    """Set up logging for every command."""
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(message)s")


def _run(
    model: str,
    samples: Sequence[Sample],
    held_out: Sequence[Sample] | None,
    settings: Settings,
    output: Path | None,
    overwrite: bool,
    as_json: bool,
    *,
    revision: str | None = None,
    dtype: str = "auto",
    device: str | None = None,
) -> Adaptation:
    """Adapt, print, save; the output folder is checked before the long work."""
    from lasertri.artefacts import check_writable
    from lasertri.method import adapt
    from lasertri.models import checkpoint_files

    if output is not None:
        check_writable(output, overwrite=overwrite)
    loaded, tokenizer = _load(model, revision, dtype, device)
    if output is not None:
        check_writable(output, needed=sum(p.nbytes for p in loaded.parameters()), overwrite=overwrite)
    files = checkpoint_files(model, revision=revision)
    result = adapt(loaded, samples, held_out=held_out, tokenizer=tokenizer, files=files, **vars(settings))
    _print(result.to_dict(), as_json, str(result))
    if output is not None:
        result.save(output, overwrite=overwrite)
        typer.echo(f"wrote {output}", err=True)
    return result


def _load(
    model: str, revision: str | None, dtype: str, device: str | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    from transformers.utils import logging as transformers_logging

    from lasertri.models import load_model, load_tokenizer

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    loaded = load_model(model, revision=revision, dtype=dtype, device=device)
    return loaded, load_tokenizer(model, revision=revision)


@contextmanager
def _usage() -> Iterator[None]:
    """An option that cannot be used is an error of usage, exit code 2."""
    try:
        yield
    except LasertriError as error:
        raise typer.BadParameter(str(error)) from error


def _fields(prompt: str, choices: str, label: str, completion: str, group: str) -> Fields:
    from lasertri.tasks.files import Fields

    # a shell passes the two characters \\n on; in a template they mean a line break
    with _usage():
        return Fields(prompt.replace(r"\n", "\n"), choices, label, completion.replace(r"\n", "\n"), group)


def _numbers(text: str, kind: Callable[[str], Number], option: str) -> tuple[Number, ...]:
    try:
        return tuple(kind(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise typer.BadParameter(f"expected numbers separated by commas, came {text!r}", param_hint=option) from error


def _print(result: dict[str, Any], as_json: bool, text: str) -> None:
    typer.echo(json.dumps(result, allow_nan=False) if as_json else text)
