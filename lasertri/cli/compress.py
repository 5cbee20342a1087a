"""`lasertri compress`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lasertri.cli import options
from lasertri.cli.app import app, print_result, reported, usage
from lasertri.cli.loading import load


@app.command("compress")
@reported
def compress_command(
    model: options.Model,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the checkpoint, for lasertri.load alone.")],
    energy: Annotated[
        float | None, typer.Option(help="Share of its squared singular values that every block keeps, such as 0.99.")
    ] = None,
    rank: Annotated[
        float | None, typer.Option(help="Or the share ρ of their number: rank int(min(b, n) ρ).", metavar="RHO")
    ] = None,
    targets: options.Targets = None,
    blocks: Annotated[int, typer.Option(min=1, help="Number of row blocks K.")] = 1,
    revision: options.Revision = None,
    dtype: options.Dtype = "auto",
    device: options.Device = None,
    memory_budget: options.MemoryBudget = 4.0,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Write MODEL with many matrices as factors of lower rank. It looks at no data: measure it with lasertri eval."""
    from lasertri.compression import Retention, compress
    from lasertri.model.checkpoint import save
    from lasertri.model.loading import checkpoint_files
    from lasertri.support.atomic_files import check_writable

    with usage():
        Retention(energy, rank)
    check_writable(output, overwrite=overwrite)
    loaded, tokenizer = load(model, revision, dtype, device)
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
    print_result(result.to_dict() | {"output": written}, as_json, str(result))
    typer.echo("nothing written: no factors would be smaller" if written is None else f"wrote {written}", err=True)
