"""`lasertri reproduce`."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Annotated, Literal

import typer

from lasertri.cli import options
from lasertri.cli.app import app, print_result, reported, usage
from lasertri.cli.loading import load
from lasertri.errors import LasertriError


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
    revision: options.Revision = None,
    dtype: options.Dtype = "auto",
    device: options.Device = None,
    seed: Annotated[int, typer.Option(help="Of what is drawn.")] = 0,
    batch_size: options.BatchSize = 16,
    memory_budget: options.MemoryBudget = 4.0,
    as_json: options.Json = False,
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
    from lasertri.model.loading import checkpoint_files
    from lasertri.reproduce.folder import Folder
    from lasertri.reproduce.markdown import as_markdown
    from lasertri.reproduce.plan import Plan
    from lasertri.reproduce.run import reproduce

    with usage():
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
    loaded, tokenizer = load(plan.model, plan.revision, dtype, device)
    files = checkpoint_files(plan.model, revision=plan.revision)
    tell = functools.partial(typer.echo, err=True)
    tell(f"columns are kept in {folder.path} as they finish; the same command goes on from there")
    result = reproduce(plan, folder, loaded, tokenizer, files=files, tell=tell)
    print_result(result, as_json, as_markdown(result))
    asked = [row for row in result["rows"] if row["task"] in plan.tasks and row["column"] in plan.columns]
    failed = sum("error" in row for row in asked)
    if failed:
        raise LasertriError(f"{failed} of {len(asked)} columns failed; the same command tries them again")


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())
