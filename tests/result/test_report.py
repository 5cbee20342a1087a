"""The report is one file that shows every part, whatever the result."""

import html
import itertools
import re

import numpy as np
import pytest

from lasertri import LasertriError, adapt
from lasertri.demo import MODEL_DIR
from lasertri.demo.recall import samples
from lasertri.result.figures import LIGHT, PALETTE, SERIES, curves, heat_map, series, spectrum
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
        result = result | {"edit": None, "rejected": trial, "calibration": nothing, "held_out": nothing, "flips": None}
    page = render(result)
    targets = {trial["target"] for trial in result["trials"]}
    assert page.count("<svg") == 1 + len(targets) + (3 if accepted else 0)
    for text in (
        "Before and after",
        "Score of every matrix",
        "Every trial",
        "Where the seconds went",
        "How it was made",
    ):
        assert text in page
    assert ('"headline">No edit<' in page) is not accepted
    assert not re.search(r'(src|href)="(?!#|data:)', page)  # nothing is loaded from elsewhere
    ids = re.findall(r' id="([^"]*)"', page)
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("accepted", [True, False])
def test_of_a_step_every_size_is_drawn_and_no_empty_heat_map(stepped, accepted):
    if not accepted:
        nothing = stepped["held_out"] | {"edited": None, "interval": None, "loss_interval": None, "verdict": None}
        rejected = {"edit": None, "rejected": stepped["trials"][0], "matrices": 0, "flips": None}
        stepped = stepped | rejected | {"calibration": nothing, "held_out": nothing}
    page = render(stepped)
    assert page.count("<svg") == (6 if accepted else 2)
    assert "Every size" in page
    assert "Score of every matrix" not in page
    assert ('"headline">No edit<' in page) is not accepted
    assert ("flatter" in page) is accepted
    assert ("In the weights" in page) is accepted


def test_before_stands_beside_after_in_tables_that_fit_a_phone(stepped):
    section = render(stepped).partition("<h2>Before and after")[2].partition("<h2>")[0]
    held_out = stepped["held_out"]
    assert [len(re.findall("<t[hd]>", row)) for row in section.split("<tr>")[1:]] == [3] * section.count("<tr>")
    figures = (f"<td>{held_out[name]['accuracy']:.1%}</td>" for name in ("baseline", "edited"))
    assert "<tr><td>accuracy</td>" + "".join(figures) in section.partition("held out, 40<")[2]
    assert "scroll" not in section


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


def test_of_several_matrices_of_one_role_the_best_is_drawn(result):
    first = result["scores"][0]
    scores = [first | {"target": name, "score": score} for name, score in (("a", 0.4), ("b", 0.1), ("c", -0.2))]
    scores += [
        entry for entry in result["scores"] if (entry["layer"], entry["role"]) != (first["layer"], first["role"])
    ]
    shown = set(heat_map(result | {"scores": scores}).axes[0].collections[0].get_array().flat)
    assert 0.4 in shown
    assert not {0.1, -0.2} & shown


def test_texts_from_outside_are_escaped(result):
    script = "<script>alert(1)</script>"
    flip = {"prompt": script, "right": script, "before": script, "after": script}
    flips = {"won": {"count": 1, "examples": [flip]}, "lost": {"count": 0, "examples": []}}
    page = render(result | {"model": script, "files": [script], "flips": flips})
    assert "<script>" not in page
    assert page.count(html.escape(script)) == 8  # of the model in title, heading and command


def test_the_headline_is_the_held_out_figure_with_its_interval(result):
    after = result["held_out"]["edited"] | {"accuracy": result["held_out"]["baseline"]["accuracy"] + 0.201}
    told = result | {"held_out": result["held_out"] | {"edited": after, "interval": (0.124, 0.278)}}
    assert '"headline">+20.1 points [12.4, 27.8] on 40 held-out samples<' in render(told)
    right = result | {"edit": None, "rejected": None, "trials": [], "baseline": result["baseline"] | {"accuracy": 1.0}}
    nothing = result["held_out"] | {"edited": None, "interval": None, "verdict": None}
    page = render(right | {"held_out": nothing, "flips": None})
    assert '"headline">No edit: the baseline is already right everywhere<' in page
    assert "Every trial" not in page


def test_an_edit_without_held_out_figures_says_why(result):
    page = render(result | {"held_out": None, "flips": None, "refused": "no held-out figures: NaN for row 7"})
    assert '"headline">An edit, without held-out figures<' in page
    assert '"flag">No held-out figures: NaN for row 7.<' in page


def test_a_rejected_one_is_not_taken_for_the_edit_where_it_was_confirmed(result):
    confirmed = {"confirmation": result["held_out"] | {"p_value": 0.4}}
    nothing = result["held_out"] | {"edited": None, "interval": None, "verdict": None}
    rejected = {"edit": None, "rejected": result["trials"][0], "calibration": nothing, "held_out": nothing}
    assert render(result | rejected | confirmed | {"flips": None}).count("<th>best rejected<") == 1
    assert "as the best rejected" not in render(result | confirmed)


def test_answers_that_turned_are_counted_and_shown_both_ways(result):
    flip = {"prompt": "Q ?", "right": "r", "before": "b", "after": "r"}
    flips = {"won": {"count": 63, "examples": [flip]}, "lost": {"count": 0, "examples": []}}
    page = render(result | {"flips": flips})
    assert "63 won: wrong before, right after" in page
    assert "The first 1" in page
    assert "0 lost: right before, wrong after" in page
    assert "Answers that turned" not in render(result | {"flips": None})


def test_what_a_race_dropped_is_hollow_with_the_samples_it_saw(result):
    first, second = (trial | {"n": n} for trial, n in zip(result["trials"][:2], (40, 10), strict=True))
    [axes] = [axes for figure in curves(result | {"trials": [first, second]}) for axes in figure.axes][:1]
    hollow = [line for line in axes.lines if line.get_markerfacecolor() == LIGHT["page"]]
    assert [text.get_text() for text in axes.texts] == ["10"]
    assert [line.get_ydata() for line in hollow] == [second["accuracy"]]


def test_singular_values_are_drawn_as_far_as_they_are_of_a_size_that_shows():
    values = {"before": [4.0, 2.0, 1.0], "after": [4.0, 1.0, 0.0]}
    [axes] = spectrum({"target": "h.0.fc", "change": 0.31, "places": [1, 2, 9], "values": values}).axes
    before, after = axes.lines
    assert (before.get_linestyle(), after.get_linestyle()) == ("--", "-")
    assert list(before.get_xdata()) == [1, 2, 9]
    np.testing.assert_array_equal(after.get_ydata(), [4.0, 1.0, np.nan])
    assert axes.get_xlabel().endswith("change: 31 % of the matrix’s norm")


def test_singular_values_that_are_all_zero_have_no_logarithm():
    [axes] = spectrum({"target": "h.0.fc", "change": 0.0, "places": [1], "values": {"before": [0], "after": [0]}}).axes
    assert axes.get_yscale() == "linear"


def test_whose_singular_values_are_shown_is_said(result, stepped):
    page = render(stepped)
    assert ("The singular values of what is added to a matrix" in page) is (stepped["edit"]["kind"] == "step")
    most = "that change most" if stepped["edit"]["kind"] == "step" else "whose values move most"
    assert most not in page
    assert f"for the 2 of 9 {most}" in render(stepped | {"matrices": 9})
    assert "before and after; over blocks of rows, their root mean square" in render(result)
    refined = stepped | {"edit": stepped["edit"] | {"kind": "refine"}, "spectra": result["spectra"]}
    assert "what the adapter adds to a matrix, before and after" in render(refined)


def test_pictures_have_text_to_select_and_colours_of_the_page(result):
    page = render(result)
    assert re.search(r"<text [^>]*>retained ratio ρ</text>", page)
    assert "var(--s1)" in page
    assert not [color for color in LIGHT.values() if color in page.partition("</style>")[2]]
    assert "prefers-color-scheme: dark" in page
    assert 'name="viewport"' in page


XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
WHITE = XYZ.sum(axis=1)
SEEN = {  # what is seen of linear red, green and blue (Machado, Oliveira and Fernandes, 2009)
    "by most": np.eye(3),
    "without red": np.array([[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]]),
    "without green": np.array([[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]]),
    "without blue": np.array([[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]]),
}


def linear(color):
    parts = np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def lab(light):
    x, y, z = np.cbrt((XYZ @ light.clip(0, 1)) / WHITE)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("mode", [0, 1])
def test_colours_stand_out_from_the_page(mode):
    page = XYZ[1] @ linear(PALETTE["page"][mode])
    for name in ("ink", "soft", "flag", *SERIES):
        dark, bright = sorted((XYZ[1] @ linear(PALETTE[name][mode]), page))
        assert (bright + 0.05) / (dark + 0.05) >= (3 if name in SERIES else 4.5)


@pytest.mark.parametrize("mode", [0, 1])
@pytest.mark.parametrize("seen", SEEN.values(), ids=SEEN)
def test_colours_of_lines_stand_apart_for_everyone(mode, seen):
    shown = [lab(seen @ linear(PALETTE[name][mode])) for name in SERIES]
    assert min(np.linalg.norm(one - other) for one, other in itertools.combinations(shown, 2)) > 15


def test_no_two_lines_look_alike():
    looks = series(range(12)).values()
    assert len(set(looks)) == 12
    assert len(set(list(looks)[:6])) == len({color for color, _ in list(looks)[:6]})


def test_seconds_stand_beside_the_floor(result):
    phases = {"baseline": 1.0, "score": 2.0, "trials": 6.0, "held-out": 4.0}
    page = render(result | {"seconds": 13.0, "seconds_by_phase": phases})
    assert "13.0 s in all, 9.0 s of them to find it: 3.0 times the floor of 3.0 s" in page
    assert "times the floor" not in render(result | {"seconds_by_phase": {"baseline": 1.0, "trials": 6.0}})


def test_what_is_missing_is_named(result, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(LasertriError, match=r"matplotlib and jinja2 missing; pip install 'lasertri\[report\]'"):
        render(result)
