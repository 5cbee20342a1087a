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
Data = Annotated[Path | None, typer.Option(help="Samples: a jsonl, csv or parquet file.")]
LM_EVAL = "lm_eval:"
TaskName = Annotated[
    str,
    typer.Option("--task", help=f"A task by name instead of --data: see lasertri ls, or {LM_EVAL}NAME of lm_eval."),
]
IncludePath = Annotated[
    Path | None, typer.Option(help="Folder of lm_eval tasks. Code in it runs: give only one you trust.")
]
DataDir = Annotated[Path | None, typer.Option(help="Folder with the files of --task; by default the hub.")]
Protocol = Annotated[
    Literal["corrected", "laser"], typer.Option(help="Of --task; laser: with the bugs of LASER's code, to compare.")
]
Prompt = Annotated[
    str,
    typer.Option(
        help=r"Template over a row's fields, such as 'Q: {question}\nA:'; <mask> in it is where a masked model answers."
    ),
]
Choices = Annotated[str, typer.Option(help="Field that lists the choices, or a JSON list that all rows share.")]
Label = Annotated[str, typer.Option(help="Field with the right choice: its index or its text.")]
Completion = Annotated[str, typer.Option(help="Template of the text that should follow, for rows without choices.")]
Match = Annotated[
    Literal["tokens", "text", "contains", "contains-with-prompt"],
    typer.Option(
        help="A completion is right if it is what the model gives, as tokens or as text, or in what it writes."
    ),
]
Window = Annotated[int, typer.Option(help="Tokens the model writes, for --match contains.")]
Group = Annotated[str, typer.Option(help="Field that keeps related rows on one side of the split.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")]
DtypeName = Literal["auto", "float32", "bfloat16", "float16"]
Dtype = Annotated[DtypeName, typer.Option(help="auto is the checkpoint's own.")]
Device = Annotated[str | None, typer.Option(help="Where to run; CUDA if torch has it.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Output = Annotated[Path | None, typer.Option("-o", "--output", help="Folder for checkpoint, edit and report.")]
Save = Annotated[
    Literal["checkpoint", "factored"],
    typer.Option(help="factored: edited weights as factors, where those are smaller, for lasertri.load alone."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output folder.")]
Normalize = Annotated[bool, typer.Option("--normalize", help="Divide a choice's log-probability by its characters.")]
Delimiter = Annotated[str, typer.Option(help="Between prompt and answer, where neither has white space.")]
Targets = Annotated[
    str | None, typer.Option(help="Regular expression for module paths; by default every layer's MLP matrices.")
]
MemoryBudget = Annotated[float, typer.Option(min=0, max=1e6, help="GiB for FP64 workspace and factors.")]
Chat = Annotated[bool, typer.Option("--chat", help="Ask in the tokenizer's chat template, as the user's turn.")]
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
    data: Data = None,
    task: TaskName = "",
    data_dir: DataDir = None,
    include_path: IncludePath = None,
    protocol: Protocol = "corrected",
    held_out: Annotated[
        Path | None, typer.Option(help="Samples to report on; then all rows of --data may calibrate.")
    ] = None,
    output: Output = None,
    prompt: Prompt = "{prompt}",
    choices: Choices = "choices",
    label: Label = "label",
    completion: Completion = "{completion}",
    group: Group = "group",
    match: Match = "tokens",
    window: Window = 0,
    revision: Revision = None,
    dtype: Dtype = "auto",
    device: Device = None,
    targets: Targets = None,
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
    chat: Chat = False,
    seed: Annotated[int, typer.Option(help="Of the split and of the test.")] = 0,
    batch_size: BatchSize = 16,
    backend: Annotated[
        Literal["auto", "gram", "triton", "cuda", "reference"], typer.Option(help="Of the ops; see lasertri info.")
    ] = "auto",
    memory_budget: MemoryBudget = 4.0,
    save: Save = "checkpoint",
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Find the single truncation that helps MODEL most on the task in --data, or named by --task, if any does."""
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
            chat=chat and not task.startswith(LM_EVAL),
            seed=seed,
            batch_size=batch_size,
            backend=backend,
            memory_budget=int(memory_budget * 2**30),
        )
    from lasertri.tasks.files import as_samples

    fields = _fields(prompt, choices, label, completion, group, match, window)
    samples = _samples(model, revision, data, fields, task, data_dir, protocol, include_path, chat)
    others = None if held_out is None else as_samples(held_out, fields)
    source: dict[str, Any] = {"factored": save == "factored", "revision": revision, "dtype": dtype, "device": device}
    _run(model, samples, others, settings, output, overwrite, as_json, **source)


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
    save: Save = "checkpoint",
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write MODEL with a saved EDIT as a plain Hugging Face checkpoint, or with factors."""
    from lasertri import checkpoint
    from lasertri.artefacts import check_writable
    from lasertri.edit import Edit, factored_edits
    from lasertri.factored import exchange

    chosen = Edit.load(edit)
    check_writable(output, overwrite=overwrite)
    loaded, tokenizer = _load(model, revision, dtype, "cpu")
    chosen.apply(loaded)
    if save == "factored":
        exchange(loaded, factored_edits([chosen], loaded))
    checkpoint.save(loaded, output, tokenizer=tokenizer, overwrite=overwrite)
    _print({"edit": chosen.candidate.to_dict(), "output": str(output)}, as_json, f"wrote {output}")


@app.command("compress")
@reported
def compress_command(
    model: Model,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the checkpoint, for lasertri.load alone.")],
    energy: Annotated[
        float | None, typer.Option(help="Share of its squared singular values that every block keeps, such as 0.99.")
    ] = None,
    rank: Annotated[
        float | None, typer.Option(help="Or the share ρ of their number: rank int(min(b, n) ρ).", metavar="RHO")
    ] = None,
    targets: Targets = None,
    blocks: Annotated[int, typer.Option(min=1, help="Number of row blocks K.")] = 1,
    revision: Revision = None,
    dtype: Dtype = "auto",
    device: Device = None,
    memory_budget: MemoryBudget = 4.0,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write MODEL with many matrices as factors of lower rank. It looks at no data: measure it with lasertri eval."""
    from lasertri.artefacts import check_writable
    from lasertri.checkpoint import save
    from lasertri.compression import Retention, compress
    from lasertri.models import checkpoint_files

    with _usage():
        Retention(energy, rank)
    check_writable(output, overwrite=overwrite)
    loaded, tokenizer = _load(model, revision, dtype, device)
    check_writable(output, needed=sum(p.nbytes for p in loaded.parameters()), overwrite=overwrite)
    result = compress(
        loaded,
        energy=energy,
        rank=rank,
        targets=targets,
        blocks=blocks,
        memory_budget=int(memory_budget * 2**30),
        files=checkpoint_files(model, revision=revision),
    )
    written = str(output) if result.count else None
    if written is not None:
        save(loaded, output, tokenizer=tokenizer, overwrite=overwrite)
    _print(result.to_dict() | {"output": written}, as_json, str(result))
    typer.echo("nothing written: no factors would be smaller" if written is None else f"wrote {written}", err=True)


@app.command("eval")
@reported
def evaluate_command(
    model: Model,
    data: Data = None,
    task: TaskName = "",
    data_dir: DataDir = None,
    include_path: IncludePath = None,
    protocol: Protocol = "corrected",
    prompt: Prompt = "{prompt}",
    choices: Choices = "choices",
    label: Label = "label",
    completion: Completion = "{completion}",
    group: Group = "group",
    match: Match = "tokens",
    window: Window = 0,
    revision: Revision = None,
    dtype: Dtype = "auto",
    device: Device = None,
    normalize: Normalize = False,
    delimiter: Delimiter = " ",
    chat: Chat = False,
    batch_size: BatchSize = 16,
    limit: Annotated[int | None, typer.Option(min=1, help="Measure the first samples alone.")] = None,
    as_json: Json = False,
) -> None:
    """Measure MODEL on all samples of --data or --task."""
    from lasertri.encode import EncodedSamples
    from lasertri.evaluate import evaluate
    from lasertri.summary import measurement

    fields = _fields(prompt, choices, label, completion, group, match, window)
    samples = _samples(model, revision, data, fields, task, data_dir, protocol, include_path, chat)[:limit]
    loaded, tokenizer = _load(model, revision, dtype, device)
    encoded = EncodedSamples(
        samples,
        model=loaded,
        tokenizer=tokenizer,
        delimiter=delimiter,
        chat=chat and not task.startswith(LM_EVAL),
        batch_size=batch_size,
    )
    result = evaluate(loaded, encoded, normalize=normalize, progress="eval").to_dict()
    _print(result, as_json, f"{measurement(result)}, {result['n']} samples")


@app.command("reproduce")
@reported
def reproduce_command(
    table: Annotated[int, typer.Option(min=1, max=5, help="Of Compress to Impress, arXiv 2510.20800.")],
    model: Annotated[
        str, typer.Option(help="A hub id or folder; by default GPT-J (1, 3, 4) or RoBERTa (2, 5; 4 has both).")
    ] = "",
    tasks: Annotated[str, typer.Option(help="Names that lasertri ls lists, such as fever,bios-gender; or all.")] = "",
    columns: Annotated[str, typer.Option(help="Of the table, such as baseline,laser; or all.")] = "",
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder; by default reproduce-table-N. Runs go on in it.")
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            help="Folder with a folder of files for each task, by its name, or with one task's files; or the hub."
        ),
    ] = None,
    protocol: Annotated[
        Literal["corrected", "laser"],
        typer.Option(help="Of the tasks; laser: with the bugs of LASER's code, as the published figures have them."),
    ] = "corrected",
    published: Annotated[
        Literal["gptj", "roberta", "none"] | None,
        typer.Option(help="Whose published figures to show; by default the model's, if it is the paper's."),
    ] = None,
    samples: Annotated[
        int | None, typer.Option(min=100, help="Try out on the first samples of every task alone.")
    ] = None,
    held_out_limit: Annotated[int | None, typer.Option(min=1, help="Most samples of the test part; or all.")] = None,
    score: Annotated[Literal["taylor", "paper"], typer.Option(help="What ranks the targets.")] = "paper",
    race: Annotated[
        bool, typer.Option("--race", help="Stop measuring a candidate that the leading one beats beyond doubt.")
    ] = False,
    revision: Revision = None,
    dtype: Dtype = "auto",
    device: Device = None,
    seed: Annotated[int, typer.Option(help="Of what is drawn.")] = 0,
    batch_size: BatchSize = 16,
    memory_budget: MemoryBudget = 4.0,
    as_json: Json = False,
) -> None:
    """Run a table of the paper, column by column, and print it with the published figures beside.

    Every column is a search by the papers' rules on one task: the first fifth
    of its samples calibrates (or 100 of them, where the column says so), the
    best candidate is taken without a test, and the rest of the samples, the
    test part, says what it is worth.

    The folder keeps each column as it finishes, and table-N.md and table-N.json.
    The same command goes on where it stopped and tries failed columns again;
    device, batch size and memory budget may change in between, other options may
    not. Tables that share columns may share a folder.
    """
    from lasertri.models import checkpoint_files
    from lasertri.reproduce.folder import Folder
    from lasertri.reproduce.markdown import as_markdown
    from lasertri.reproduce.plan import Plan
    from lasertri.reproduce.run import reproduce

    with _usage():
        plan = Plan(
            table=table,
            model=model,
            revision=revision,
            tasks=_names(tasks),
            columns=_names(columns),
            published=published,
            data_dir=data_dir,
            protocol=protocol,
            samples=samples,
            held_out_limit=held_out_limit,
            race=race,
            score=score,
            seed=seed,
            batch_size=batch_size,
            memory_budget=int(memory_budget * 2**30),
        )
    folder = Folder(output or Path(f"reproduce-table-{table}"))
    folder.check(plan.rules)
    loaded, tokenizer = _load(plan.model, plan.revision, dtype, device)
    files = checkpoint_files(plan.model, revision=plan.revision)
    tell = functools.partial(typer.echo, err=True)
    tell(f"columns are kept in {folder.path} as they finish; the same command goes on from there")
    result = reproduce(plan, folder, loaded, tokenizer, files=files, tell=tell)
    _print(result, as_json, as_markdown(result))
    asked = [row for row in result["rows"] if row["task"] in plan.tasks and row["column"] in plan.columns]
    failed = sum("error" in row for row in asked)
    if failed:
        raise LasertriError(f"{failed} of {len(asked)} columns failed; the same command tries them again")


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


@app.command("ls")
@reported
def list_names(as_json: Json = False) -> None:
    """List tasks, architectures, strategies and backends by the names that options take."""
    from lasertri.architectures import ARCHITECTURES
    from lasertri.ops.backends import BACKENDS
    from lasertri.tasks.named import TASKS

    names = {
        "tasks": {
            name: f"{task.size:,} samples of {task.source.repository}, {task.source.config}"
            for name, task in TASKS.items()
        },
        "architectures": {name: ", ".join(where.roles) for name, where in ARCHITECTURES.items()},
        "strategies": {
            name: f"scored on {strategy.gradients or 'nothing'}, measured on {strategy.evaluation}"
            for name, strategy in STRATEGIES.items()
        },
        "backends": {name: backend.description for name, backend in BACKENDS.items()},
    }
    width = max(len(name) for listed in names.values() for name in listed)
    lines = [
        line for kind, listed in names.items() for line in (kind, *(f"  {n:{width}}  {w}" for n, w in listed.items()))
    ]
    _print(names, as_json, "\n".join(lines))


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
    factored: bool = False,
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
        result.save(output, overwrite=overwrite, factored=factored)
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


def _fields(prompt: str, choices: str, label: str, completion: str, group: str, match: str, window: int) -> Fields:
    from lasertri.tasks.files import Fields

    # a shell passes the two characters \\n on; in a template they mean a line break
    with _usage():
        return Fields(
            prompt.replace(r"\n", "\n"), choices, label, completion.replace(r"\n", "\n"), group, match, window
        )


def _samples(
    model: str,
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
    from lasertri.models import checkpoint_kind, load_tokenizer
    from lasertri.tasks.files import Fields, as_samples
    from lasertri.tasks.named import described, task_samples

    if (data is None) == (not task):
        raise typer.BadParameter("expected either --data or --task, came " + ("both" if task else "neither"))
    if data is not None:
        if data_dir is not None or protocol != "corrected":
            raise typer.BadParameter("--data-dir and --protocol go with --task, not with --data")
        return as_samples(data, fields)
    if task.startswith(LM_EVAL):
        from lasertri.tasks.lm_eval import lm_eval_samples

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
    if fields != Fields():
        raise typer.BadParameter(
            "--prompt, --choices, --label, --completion, --group, --match and --window go with --data, not with --task"
        )
    tokenizer = load_tokenizer(model, revision=revision)
    kind, _ = checkpoint_kind(model, revision=revision)
    found = task_samples(task, masked=kind == "masked", data_dir=data_dir, protocol=protocol, tokenizer=tokenizer)
    typer.echo(described(task, found), err=True)
    return found


def _numbers(text: str, kind: Callable[[str], Number], option: str) -> tuple[Number, ...]:
    try:
        return tuple(kind(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise typer.BadParameter(f"expected numbers separated by commas, came {text!r}", param_hint=option) from error


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _print(result: dict[str, Any], as_json: bool, text: str) -> None:
    typer.echo(json.dumps(result, allow_nan=False) if as_json else text)
