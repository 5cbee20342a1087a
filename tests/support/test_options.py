"""Options declared as fields of a dataclass: read from text as they are written, checked, offered as keywords."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lasertri import LasertriError
from lasertri.support.options import Option, check, declared, nearest, with_options_of


@dataclass(frozen=True)
class Oven:
    """Every type of option."""

    minutes: Annotated[int, Option("How long.", least=1, most=90)]
    degrees: Annotated[float, Option("How hot.", least=0)] = 180.0
    shelves: Annotated[tuple[int, ...], Option("Where.")] = (1, 2)
    mode: Annotated[Literal["fan", "grill"], Option("How.")] = "fan"
    dish: Annotated[str | None, Option("In what.")] = None
    notes: Annotated[Path | None, Option("Written where.")] = None
    energy: Annotated[int, Option("Joules; on the command line kJ.", unit=1000)] = 5000
    light: Annotated[bool, Option("Whether to look.")] = False


@with_options_of(Oven)
def bake(cake, **options):
    """Bake a cake."""
    return cake, Oven(**options)


def test_a_function_takes_them_as_keywords():
    assert bake("plum", minutes=40) == ("plum", Oven(40))
    assert bake.__doc__.splitlines()[-1] == "    light: Whether to look."
    with pytest.raises(LasertriError, match="expected an option of bake, got 'minuets'; did you mean 'minutes'?"):
        bake("plum", minuets=40)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"minutes": 91}, "expected minutes from 1 to 90, got 91"),
        ({"minutes": "10"}, "expected minutes as a whole number, got '10'"),
        ({"degrees": -1}, "expected degrees of at least 0, got -1"),
        ({"degrees": None}, "expected degrees as a number, got None"),
        ({"shelves": (1, 2.5)}, "expected shelves separated by commas, each as a whole number, got (1, 2.5)"),
        ({"mode": "steam"}, "expected mode among ['fan', 'grill'], got 'steam'"),
        ({"dish": 3}, "expected dish as text, got 3"),
        ({"notes": "a"}, "expected notes as Path, got 'a'"),
        ({"light": 1}, "expected light as True or False, got 1"),
    ],
)
def test_what_a_value_cannot_be_is_said(changes, message):
    with pytest.raises(LasertriError) as raised:
        check(Oven(**{"minutes": 10} | changes))
    assert str(raised.value) == message


def test_what_fits_passes():
    check(Oven(1, degrees=200, shelves=(), dish="tin", notes=Path("a"), light=True))


@given(st.lists(st.integers()), st.integers(0, 10**6))
def test_what_is_written_is_read(shelves, energy):
    options = declared(Oven)
    for name, value in (("shelves", tuple(shelves)), ("energy", energy)):
        assert options[name].read(options[name].written(value)) == value
    assert options["shelves"].read(str(shelves)) == tuple(shelves)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("minutes", "", "expected minutes as a whole number, got ''"),
        ("minutes", "0", "expected minutes from 1 to 90, got 0"),
        ("energy", "lots", "expected energy as a number, got 'lots'"),
        ("energy", "inf", "expected energy as a number, got 'inf'"),
        ("shelves", "1,x", "expected shelves separated by commas, each as a whole number, got '1,x'"),
    ],
)
def test_a_text_that_cannot_be_read_is_said(name, text, message):
    with pytest.raises(LasertriError) as raised:
        declared(Oven)[name].read(text)
    assert str(raised.value) == message


def test_the_nearest_name():
    assert nearest("tsk", ["task", "data"]) == "; did you mean 'task'?"
    assert nearest("zzz", ["task", "data"]) == ""
