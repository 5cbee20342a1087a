"""`lasertri demo`."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from lasertri.cli import options
from lasertri.cli.adapt import run
from lasertri.cli.app import command
from lasertri.cli.loading import Loading
from lasertri.search.settings import Settings
from lasertri.support.output_folder import OutputFolder

DEMO_TASK = """\
A small GPT-J, trained on sequences where "?" is followed by the sequence's own symbol only half of the time, and by the
noise "!" otherwise. It learnt two things: to recall what followed "?" before, and to expect "!" after any "?". The
noise is gone now: which edit makes it recall?
"""
DEMO_WHY = """
Why this works: recall is the work of attention; the expectation of "!", the same for every sequence, sits in the MLPs.
Cutting the smaller singular values of that one MLP matrix removes the generic answer and leaves the recall. It is a
mechanism the model was trained to have (arXiv 2406.03068), so do not expect gains of this size on every task.
"""
DEMO_STEP = """\
The default of lasertri adapt needs no such habit: a step of all {layers} MLP layers down one gradient of the same
samples, a LoRA adapter. Held out it gives accuracy {accuracy:.1%}, log loss {loss:.3f} (truncated: {truncated:.3f}).\
"""


@command("lasertri demo -o adapted", "lasertri demo --edit step -o adapter")
def demo(
    edit: Annotated[
        Literal["truncate", "step", "shrink"], typer.Option(help="Kind; after a truncation a step is shown beside.")
    ] = "truncate",
    output: options.Output = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Adapt a small packaged model to in-context recall: no network, under a minute."""
    from lasertri.demo import MODEL_DIR
    from lasertri.demo.recall import samples
    from lasertri.method import adapt

    folder = None if output is None else OutputFolder(output, overwrite=overwrite)
    if not as_json:
        typer.echo(DEMO_TASK)
    data = samples(200, seed=1), samples(1000, seed=2)
    result = run(str(MODEL_DIR), *data, Settings(edit=edit), Loading(), folder, as_json, data="lasertri demo")
    if result.edit is None or edit != "truncate" or as_json:
        return
    typer.echo(DEMO_WHY)
    step = adapt(result.model, data[0], held_out=data[1], tokenizer=result.tokenizer, edit="step")
    truncated, stepped = (None if it.held_out is None else it.held_out.edited for it in (result, step))
    if step.edit is not None and truncated is not None and stepped is not None:
        typer.echo(
            DEMO_STEP.format(
                layers=len(step.edit.targets),
                accuracy=stepped.accuracy,
                loss=stepped.log_loss,
                truncated=truncated.log_loss,
            )
        )
