"""The options of the method: declared once, offered everywhere, checked before any work."""

import inspect
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
    assert text.startswith("Find the single truncation")
    assert all(f"    {name}: {option.option.help}" in text for name, option in declared(Settings).items())


def test_names_that_options_list_are_those_that_the_ops_know():
    options = declared(Settings)
    assert options["backend"].names == ("auto", *BACKENDS)
    assert set(options["score"].names) == set(TAIL_SCORES)


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
