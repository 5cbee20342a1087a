"""Options that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

LM_EVAL = "lm_eval:"  # begins the --task that is one of lm-evaluation-harness

Model = Annotated[str, typer.Argument(help="A Hugging Face hub id or a local folder.")]
Data = Annotated[Path | None, typer.Option(help="Samples: a jsonl, csv or parquet file.")]
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
