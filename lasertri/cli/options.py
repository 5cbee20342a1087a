"""Options that several commands take."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Annotated, Literal

import typer

# an option, by its section of --help
samples, model, search, output = (
    functools.partial(typer.Option, rich_help_panel=section) for section in ("Samples", "Model", "Search", "Output")
)
LM_EVAL = "lm_eval:"  # begins the --task that is one of lm-evaluation-harness

Model = Annotated[str, typer.Argument(help="A Hugging Face hub id or a local folder.")]
Data = Annotated[Path | None, samples(help="Samples: a jsonl, csv or parquet file.")]
TaskName = Annotated[
    str,
    samples(
        "--task",
        help=f"A task by name instead of --data: see lasertri ls, or {LM_EVAL}NAME of lm_eval.",
    ),
]
IncludePath = Annotated[
    Path | None,
    samples(help="Folder of lm_eval tasks. Code in it runs: give only one you trust."),
]
DataDir = Annotated[Path | None, samples(help="Folder with the files of --task; by default the hub.")]
Protocol = Annotated[
    Literal["corrected", "laser"],
    samples(help="Of --task; laser: with the bugs of LASER's code, to compare."),
]
Prompt = Annotated[
    str,
    samples(
        help=r"Template over a row's fields, such as 'Q: {question}\nA:'; <mask> in it: a masked model answers there.",
    ),
]
Choices = Annotated[str, samples(help="Field that lists the choices, or a JSON list that all rows share.")]
Label = Annotated[str, samples(help="Field with the right choice: its index or its text.")]
Completion = Annotated[
    str,
    samples(help="Template of the text that should follow, for rows without choices."),
]
Match = Annotated[
    Literal["tokens", "text", "contains", "contains-with-prompt"],
    samples(
        help="A completion is right if it is what the model gives, as tokens or as text, or in what it writes.",
    ),
]
Window = Annotated[int, samples(help="Tokens the model writes, for --match contains.")]
Group = Annotated[str, samples(help="Field that keeps related rows on one side of the split.")]
Revision = Annotated[str | None, model(help="Branch, tag or commit on the hub.")]
DtypeName = Literal["auto", "float32", "bfloat16", "float16"]
Dtype = Annotated[DtypeName, model(help="auto is the checkpoint's own.")]
Device = Annotated[str | None, model(help="Where to run; CUDA if torch has it.", show_default=False)]
Json = Annotated[bool, output("--json", help="Print one JSON object.")]
Output = Annotated[Path | None, output("-o", "--output", help="Folder for checkpoint, edit and report.")]
Save = Annotated[
    Literal["checkpoint", "factored"],
    output(
        help="factored: edited weights as factors, where those are smaller, for lasertri.load alone.",
    ),
]
Overwrite = Annotated[bool, output("--overwrite", help="Replace the output folder.")]
Normalize = Annotated[
    bool,
    samples("--normalize", help="Divide a choice's log-probability by its characters."),
]
Delimiter = Annotated[str, samples(help="Between prompt and answer, where neither has white space.")]
Targets = Annotated[
    str | None,
    model(help="Regular expression for module paths; by default every layer's MLP matrices."),
]
MemoryBudget = Annotated[float, model(min=0, max=1e6, help="GiB for FP64 workspace and factors.")]
Chat = Annotated[
    bool,
    samples("--chat", help="Ask in the tokenizer's chat template, as the user's turn."),
]
BatchSize = Annotated[int, model(min=1, help="Rows run through the model at once.")]
