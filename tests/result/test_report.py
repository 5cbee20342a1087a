"""The report is one file that shows every part, whatever the result."""

import html
import re

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lasertri import LasertriError, adapt
from lasertri.demo import MODEL_DIR
from lasertri.demo.recall import samples
from lasertri.result.report import render
from lasertri.result.summary import summarize

LOSSES = {"baseline": 0.5, "edited": 0.4}


@pytest.fixture(scope="module")
def result():
    return adapt(
        str(MODEL_DIR),
        samples(40, seed=31),
        held_out=samples(40, seed=32),
        targets=r"h\.0\.mlp",
        blocks=(2,),
        ratios=(0.6, 0.4),
        progress=False,
    ).to_dict()


@pytest.fixture(scope="module", params=["step", "shrink"])
def stepped(request):
    """Along one gradient; of a step two directions are tried."""
    options = {"edit": request.param, "targets": r"h\.0\.mlp", "progress": False}
    return adapt(str(MODEL_DIR), samples(40, seed=31), held_out=samples(40, seed=32), **options).to_dict()


@pytest.mark.parametrize("accepted", [True, False])
def test_every_part_is_drawn_in_one_self_contained_file(result, accepted):
    if not accepted:
        trial = result["trials"][0]
        nothing = result["held_out"] | {"edited": None, "interval": None, "verdict": None}
        result = result | {"edit": None, "rejected": trial, "calibration": nothing, "held_out": nothing}
    page = render(result)
    assert page.count("<svg") == (3 if accepted else 2)
    for text in ("Before and after", "Score of every matrix", "Every trial", "Environment"):
        assert text in page
    assert ("No edit." in page) is not accepted
    assert not re.search(r'(src|href)="(?!#|data:)', page)  # nothing is loaded from elsewhere


@pytest.mark.parametrize("accepted", [True, False])
def test_of_a_step_every_size_is_drawn_and_no_empty_heat_map(stepped, accepted):
    if not accepted:
        nothing = stepped["held_out"] | {"edited": None, "interval": None, "loss_interval": None, "verdict": None}
        rejected = {"edit": None, "rejected": stepped["trials"][0], "matrices": 0}
        stepped = stepped | rejected | {"calibration": nothing, "held_out": nothing}
    page = render(stepped)
    assert page.count("<svg") == (2 if accepted else 1)
    assert "Every size" in page
    assert "Score of every matrix" not in page
    assert ("No edit." in page) is not accepted
    assert ("flatter" in page) is accepted


def test_a_size_that_ruins_the_model_has_no_loss_to_draw(stepped):
    chosen = stepped["edit"] or stepped["rejected"]
    ruined = [trial | {"loss": None} for trial in stepped["trials"] if trial["size"] != chosen["size"]]
    kept = [trial for trial in stepped["trials"] if trial["size"] == chosen["size"]]
    assert "Every size" in render(stepped | {"trials": [*ruined, *kept]})


def test_what_is_said_of_a_step_is_how_it_was_found(stepped):
    text = summarize(stepped)
    assert "each on samples that took no part in making it" in text.splitlines()[1]
    assert re.search(r"edit: .* of 2 linear layers .*, as far as would save [\d.]+ times the loss at first order", text)
    assert "calibration, 40 samples, which the edit was made from" in text
    assert re.search(r"held-out difference \+.*: helps\n  in log loss -0\.\d{3} \[-0\.\d{3}, -0\.\d{3}\]", text)


def test_of_a_choice_task_the_loss_is_that_among_the_choices(result):
    figures = {name: result["held_out"][name] | {"choice_log_loss": loss} for name, loss in LOSSES.items()}
    text = summarize(result | {"held_out": result["held_out"] | figures | {"loss_interval": (-0.2, -0.05)}})
    assert "among the choices 0.500" in text
    assert "  in log loss among the choices -0.100 [-0.200, -0.050]" in text


def test_how_the_model_is_asked_is_shown(result):
    asked = {"prompt": 'It is "', "border": "", "answer": "b\n", "after": ""}
    for page in (summarize(result | {"asked": asked}), html.unescape(render(result | {"asked": asked}))):
        assert """asked so: prompt 'It is "', border '', answer 'b\\n'""" in page
        assert "WARNING" not in page
    assert "asked so: prompt" in summarize(result)
    assert "asked so" not in summarize(result | {"asked": None})


def test_a_model_that_is_never_right_is_warned_of_with_what_it_gave(result):
    for page in (summarize, lambda made: html.unescape(render(made))):
        text = page(result | {"instead": [("cold", " the"), ("b", "")]})
        assert "WARNING: none of 40 samples is answered rightly: the model gave ' the' for 'cold', '' for 'b'" in text


def test_an_infinite_loss_is_said(result):
    """JSON has no infinity: it comes as None."""
    figures = result["held_out"]["baseline"] | {"log_loss": None}
    result = result | {"held_out": result["held_out"] | {"baseline": figures}}
    assert "log loss infinite" in summarize(result)
    assert "<td>infinite</td>" in render(result)


def test_of_several_matrices_of_one_role_the_best_is_drawn(result, monkeypatch):
    drawn = []
    monkeypatch.setattr(Axes, "imshow", lambda axes, grid, **_: drawn.append(grid))
    monkeypatch.setattr(Figure, "colorbar", lambda *_, **__: None)
    first = result["scores"][0]
    scores = [first | {"target": name, "score": score} for name, score in (("a", 0.4), ("b", 0.1), ("c", -0.2))]
    scores += [
        entry for entry in result["scores"] if (entry["layer"], entry["role"]) != (first["layer"], first["role"])
    ]
    render(result | {"scores": scores})
    shown = {score for row in drawn[0] for score in row}
    assert 0.4 in shown
    assert not {0.1, -0.2} & shown


def test_names_from_outside_are_escaped(result):
    assert "<script>" not in render(result | {"model": "<script>alert(1)</script>"})


def test_what_is_missing_is_named(result, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(LasertriError, match=r"matplotlib and jinja2 missing; pip install 'lasertri\[report\]'"):
        render(result)
