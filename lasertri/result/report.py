"""`report.html`: the result as pictures, one self-contained file made from `Adaptation.to_dict()`."""

from __future__ import annotations

import importlib.util
import io
from typing import TYPE_CHECKING, Any

from lasertri.errors import LasertriError
from lasertri.result.summary import aside, describe, kind, nats, questions

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def report_obstacle() -> str | None:
    """Why no report can be made here, or None."""
    missing = [name for name in ("matplotlib", "jinja2") if importlib.util.find_spec(name) is None]
    return f"{' and '.join(missing)} missing; pip install 'lasertri[report]'" if missing else None


def render(result: dict[str, Any]) -> str:
    """The report as HTML.

    Raises:
        LasertriError: the extra `report` is not installed.
    """
    obstacle = report_obstacle()
    if obstacle:
        raise LasertriError(f"expected what a report needs, but {obstacle}")
    from jinja2 import Environment, PackageLoader

    from lasertri.result import figures

    if not result["trials"]:
        pictures = {}
    elif kind(result) == "truncate":
        pictures = {"heat_map": figures.heat_map(result), "curves": figures.curves(result)}
    else:
        pictures = {"sizes": figures.sizes(result)}
    if result["held_out"] and result["held_out"]["interval"]:
        pictures["difference"] = figures.difference(result["held_out"])
    template = Environment(loader=PackageLoader("lasertri.result", "."), autoescape=True).get_template("report.html.j2")
    drawn = {name: _svg(figure) for name, figure in pictures.items()}
    beside = "" if result["side_effects"] is None else aside([result, *result["further"]])
    return template.render(
        result=result,
        kind=kind(result),
        describe=describe,
        nats=nats,
        questions=questions(result),
        aside=beside,
        **drawn,
    )


def _svg(figure: Figure) -> str:
    from markupsafe import Markup

    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return Markup(buffer.getvalue()[buffer.getvalue().index("<svg") :])
