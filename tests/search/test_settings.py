"""The options of the method: declared once, offered everywhere, checked before any work."""

import inspect
from dataclasses import replace
from typing import get_args

import pytest

import lasertri
from lasertri import LasertriError
from lasertri.ops.backends import BACKENDS
from lasertri.ops.blocks import TAIL_SCORES
from lasertri.search.settings import Settings
from lasertri.support.options import declared


def test_the_signature_of_adapt_has_every_option_with_its_default():
    parameters = inspect.signature(lasertri.adapt).parameters
    expected = {name: option.default for name, option in declared(Settings).items()}
    assert {name: parameters[name].default for name in list(parameters)[-len(expected) :]} == expected
    assert list(parameters)[:2] == ["model", "samples"]
    assert get_args(parameters["accept"].annotation) == ("test", "best")
    assert parameters["model"].annotation == "nn.Module | str | Path"


def test_the_documentation_of_adapt_has_every_option_with_its_text():
    text = inspect.getdoc(lasertri.adapt)
    assert text.startswith("Find the edit that helps a model most")
    assert all(f"    {name}: {option.option.help}" in text for name, option in declared(Settings).items())


def test_names_that_options_list_are_those_that_the_ops_know():
    options = declared(Settings)
    assert options["backend"].names == ("auto", *BACKENDS)
    assert set(options["score"].names) == {"fisher", *TAIL_SCORES}


def test_an_unknown_keyword_is_named_with_the_nearest():
    with pytest.raises(
        LasertriError, match="expected an option of adapt, got 'calibraton'; did you mean 'calibration'?"
    ):
        lasertri.adapt("model", [], calibraton=40)
    with pytest.raises(LasertriError, match=r"got 'zzz'; help\(adapt\) lists them"):
        lasertri.adapt("model", [], zzz=1)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'samples'"):
        lasertri.adapt("model")


def test_one_number_stands_for_a_list_of_one():
    assert Settings(ratios=0.5, blocks=[2]) == Settings(ratios=(0.5,), blocks=(2,))


def test_its_keywords_make_it_again_and_its_dict_leaves_out_what_changes_no_result():
    settings = Settings(strategy="laser", count=2, progress=False)
    assert Settings(**settings.keywords) == settings
    assert set(settings.keywords) - set(settings.to_dict()) == {"progress"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategy": "magic"}, "expected strategy among"),
        ({"targets": "("}, "expected a regular expression for the targets"),
        ({"targets": 3}, "expected targets as text, got 3"),
        ({"ratios": (0.5, "x")}, "expected ratios separated by commas, each as a number"),
        ({"ratios": float("nan")}, "expected ratios from 0 to 1, got nan"),
        ({"ratios": 1.0}, "expected a retained ratio below 1"),
        ({"blocks": (1, 0)}, "expected blocks of at least 1, got 0"),
        ({"count": True}, "expected count as a whole number, got True"),
        ({"seed": -1}, "expected seed of at least 0, got -1"),
        ({"svd": "laser-compat"}, "expected svd 'exact' with"),
    ],
)
def test_a_value_that_an_option_cannot_have(options, message):
    with pytest.raises(LasertriError, match=message):
        Settings(**options)


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({}, "step"),
        ({"rank": 4}, "step"),
        ({"direction": "plain"}, "step"),
        ({"merge": True}, "step"),
        ({"targets": "mlp", "accept": "best", "seed": 3, "calibration": 40}, "step"),
        ({"strategy": "laser"}, "truncate"),
        ({"ratios": 0.5}, "truncate"),
        ({"blocks": 2}, "truncate"),
        ({"race": False}, "truncate"),
        ({"confirm": 50}, "truncate"),
        ({"count": 3, "max_edits": 2}, "truncate"),
        ({"edit": "shrink", "blocks": 2}, "shrink"),
        ({"edit": "truncate"}, "truncate"),
    ],
)
def test_which_kind_is_meant_goes_by_the_options_given(options, kind):
    settings = Settings(**options)
    assert settings.edit == kind
    assert bool(settings.ratios) == (kind == "truncate")
    assert Settings(**settings.keywords) == settings
    assert replace(settings, progress=False, seed=7).edit == kind
    assert replace(settings, seed=7).ratios == settings.ratios


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"edit": "step", "ratios": 0.5},
            "expected no ratios with edit='step'; leave it out, or choose the kind of edit",
        ),
        ({"edit": "step", "blocks": 2, "count": 3}, "expected no blocks or count with edit='step'; leave them out"),
        ({"edit": "shrink", "rank": 4}, "expected no rank with edit='shrink'"),
        ({"edit": "shrink", "strategy": "laser"}, "expected no strategy with edit='shrink'"),
        ({"edit": "truncate", "direction": "plain"}, "expected no direction with edit='truncate'"),
        ({"strategy": "laser", "merge": True}, "expected no merge with edit='truncate'"),
        ({"edit": "shrink", "blocks": (1, 2)}, r"expected one number of blocks with edit='shrink', got \[1, 2\]"),
        ({"rank": 0}, "expected rank of at least 2, got 0"),
        ({"max_kl": -1.0}, "expected max_kl of at least 0, got -1.0"),
        ({"max_kl": float("inf")}, "expected a finite max_kl, got inf"),
        ({"confirm": 50, "accept": "best"}, "expected no confirm with accept='best'"),
        ({"rank": 2.5}, "expected rank as a whole number, got 2.5"),
        ({"direction": "up"}, "expected direction among"),
        ({"edit": "grow"}, "expected edit among"),
    ],
)
def test_options_of_another_kind_and_of_none_are_one_sentence(options, message):
    with pytest.raises(LasertriError, match=message):
        Settings(**options)
