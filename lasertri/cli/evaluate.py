"""`lasertri eval`."""

from __future__ import annotations

from typing import Annotated

import typer

from lasertri.cli import options
from lasertri.cli.app import app, print_result, reported
from lasertri.cli.loading import load
from lasertri.cli.samples import fields_of, samples_of


@app.command("eval")
@reported
def evaluate_command(
    model: options.Model,
    data: options.Data = None,
    task: options.TaskName = "",
    data_dir: options.DataDir = None,
    include_path: options.IncludePath = None,
    protocol: options.Protocol = "corrected",
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
    normalize: options.Normalize = False,
    delimiter: options.Delimiter = " ",
    chat: options.Chat = False,
    batch_size: options.BatchSize = 16,
    limit: Annotated[int | None, typer.Option(min=1, help="Measure the first samples alone.")] = None,
    as_json: options.Json = False,
) -> None:
    """Measure MODEL on all samples of --data or --task."""
    from lasertri.language.samples import EncodedSamples
    from lasertri.measure.evaluate import evaluate
    from lasertri.result.summary import measurement

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
    )[:limit]
    loaded, tokenizer = load(model, revision, dtype, device)
    encoded = EncodedSamples(
        samples,
        model=loaded,
        tokenizer=tokenizer,
        delimiter=delimiter,
        chat=chat and not task.startswith(options.LM_EVAL),
        batch_size=batch_size,
    )
    result = evaluate(loaded, encoded, normalize=normalize, progress="eval").to_dict()
    print_result(result, as_json, f"{measurement(result)}, {result['n']} samples")
