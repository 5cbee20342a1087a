"""`report.html`: the result as a page, one self-contained file made from `Adaptation.to_dict()`."""

from __future__ import annotations

import importlib.util
import shlex
from typing import TYPE_CHECKING, Any

from lasertri.errors import LasertriError
from lasertri.result.summary import aside, describe, headline, kind, loss_of, nats, questions
from lasertri.search.settings import DEFAULTS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FLOOR = ("baseline", "gradient", "score")  # phases: the samples once forward, and once forward and backward

AFTERWARDS = ("side effects", "spectra", "held-out")  # phases that measure what was found


def report_obstacle() -> str | None:
    """Why no report can be made here, or None."""
    missing = [name for name in ("matplotlib", "jinja2") if importlib.util.find_spec(name) is None]
    return f"{' and '.join(missing)} missing; pip install 'lasertri[report]'" if missing else None


def render(result: dict[str, Any]) -> str:
    """The report as HTML.

    Raises:
        LasertriError: the extra `report` is not installed.
    """
    require_report()
    from lasertri.result import figures

    pictures: dict[str, list[Figure]] = {}
    legend: dict[Any, tuple[str, str]] = {}
    if not result["trials"]:
        pass
    elif kind(result) == "truncate":
        pictures = {"heat_map": [figures.heat_map(result)], "curves": figures.curves(result)}
        legend = figures.series([f"K = {blocks}" for blocks in sorted(result["settings"]["blocks"])])
    else:
        pictures = {"sizes": figures.sizes(result)}
        legend = figures.series(figures.directions(result))
    shown = [spectrum for found in (result, *result["further"]) if found["edit"] for spectrum in found["spectra"]]
    if shown:
        pictures["spectra"] = [figures.spectrum(each) for each in shown]
    if result["held_out"] and result["held_out"]["interval"]:
        pictures["difference"] = figures.differences({"": result["held_out"]})
    return page(
        "report.html.j2",
        pictures,
        result=result,
        headline=headline(result),
        kind=kind(result),
        describe=describe,
        loss_of=loss_of,
        nats=nats,
        questions=questions(result),
        aside="" if result["side_effects"] is None else aside([result, *result["further"]]),
        shown=shown,
        weights=_weights(result, shown),
        legend=legend,
        given=_given(result["settings"]),
        floor=_floor(result["seconds_by_phase"]),
        search=result["seconds"] - sum(result["seconds_by_phase"].get(phase, 0) for phase in AFTERWARDS),
        model=shlex.quote(result["model"]),
    )


def require_report() -> None:
    """Raise unless a page can be made here.

    Raises:
        LasertriError: the extra `report` is not installed.
    """
    obstacle = report_obstacle()
    if obstacle:
        raise LasertriError(f"expected what a report needs, but {obstacle}")


def page(template: str, pictures: dict[str, list[Figure]], **values: Any) -> str:
    """A page of this package, with these pictures and values by their names in its template."""
    from jinja2 import Environment, PackageLoader
    from markupsafe import Markup

    from lasertri.result.figures import MARKERS, PALETTE, as_svg

    environment = Environment(
        loader=PackageLoader("lasertri.result", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"capital": lambda text: text[:1].upper() + text[1:], "percent": "{:.1%}".format}
    drawn = {
        name: [Markup(as_svg(figure, f"{name} {number}")) for number, figure in enumerate(figures)]
        for name, figures in pictures.items()
    }
    return environment.get_template(template).render(palette=PALETTE, markers=MARKERS, **drawn, **values)


def _weights(result: dict[str, Any], shown: list[dict[str, Any]]) -> str:
    """Whose singular values are shown."""
    matrices = result["matrices"]
    few = "" if len(shown) == matrices else f", for the {len(shown)} of {matrices}"
    if any("step" in each["values"] for each in shown):
        whole = few and f"{few} that change most"
        return f"The singular values of what is added to a matrix{whole}."
    whole = few and f"{few} whose values move most"
    if result["edit"] is not None and result["edit"]["kind"] == "refine":
        return f"The singular values of what the adapter adds to a matrix, before and after{whole}."
    parts = "; over blocks of rows, their root mean square" if any(each["blocks"] > 1 for each in shown) else ""
    return f"The singular values of a matrix, before and after{whole}{parts}."


def _given(settings: dict[str, Any]) -> list[str]:
    """The settings that are not the defaults, with those that a kind of edit has of its own."""
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()}
    return [f"{name} {value!r}" for name, value in plain.items() if value not in (DEFAULTS.get(name), [], None)]


def _floor(phases: dict[str, float]) -> dict[str, float]:
    """What of the seconds is the floor, by phase; nothing where no gradient was taken."""
    known = {name: phases[name] for name in FLOOR if name in phases}
    return known if len(known) > 1 else {}
