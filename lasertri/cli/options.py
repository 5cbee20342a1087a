"""Options that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

Model = Annotated[str, typer.Argument(help="A Hugging Face hub id, a local folder or a GGUF file.", metavar="MODEL")]
TensorParallel = Annotated[
    bool,
    typer.Option(
        "--tensor-parallel",
        help="Load a part of MODEL in each of torchrun's processes; the edit is written alone, without a checkpoint.",
        rich_help_panel="Model",
    ),
]
Output = Annotated[
    Path | None,
    typer.Option("-o", "--output", help="Folder for checkpoint, edit and report.", rich_help_panel="Output"),
]
Save = Annotated[
    Literal["checkpoint", "factored"],
    typer.Option(
        help="factored: edited weights as factors, where those are smaller; lasertri.factored reads them.",
        rich_help_panel="Output",
    ),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace an output folder that lasertri wrote.", rich_help_panel="Output")
]
LogSamples = Annotated[
    bool,
    typer.Option(
        "--log-samples",
        help="Write samples.jsonl too: every held-out sample with the model's answers before and after.",
        rich_help_panel="Output",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.", rich_help_panel="Output")]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume/--no-resume",
        help="Go on where the same command was stopped, if it was, or begin anew.",
        rich_help_panel="Output",
    ),
]
