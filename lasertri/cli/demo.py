"""`lasertri demo`."""

from __future__ import annotations

import typer

from lasertri.cli import options
from lasertri.cli.adapt import run
from lasertri.cli.app import app, reported
from lasertri.search.settings import Settings

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


@app.command()
@reported
def demo(output: options.Output = None, overwrite: options.Overwrite = False, as_json: options.Json = False) -> None:
    """Adapt a small packaged model to in-context recall: no network, under a minute."""
    from lasertri.demo import MODEL_DIR
    from lasertri.demo.recall import samples

    if not as_json:
        typer.echo(DEMO_TASK)
    result = run(str(MODEL_DIR), samples(200, seed=1), samples(1000, seed=2), Settings(), output, overwrite, as_json)
    if not as_json and result.edit is not None:
        typer.echo(DEMO_WHY)
