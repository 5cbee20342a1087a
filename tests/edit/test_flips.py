"""Answers that turned are counted both ways, and the first of them kept, cut where they are long."""

import numpy as np
from tiny import make_samples

from lasertri import adapt
from lasertri.edit.comparison import Comparison
from lasertri.edit.flips import PROMPT, Flip, Flips
from lasertri.measure.measurement import Measurement


class Asked:
    """Samples, as far as flips need them."""

    questions = [f"question {i}" for i in range(9)] + ["long " * 100]
    strata = ["right"] * 10


def measured(correct):
    correct = np.array(correct, dtype=bool)
    given = ["right" if each else "wrong" for each in correct]
    return Measurement(correct.mean(), 0.5, None, 1.0, False, len(correct), correct, given=given)


def test_both_ways_are_counted_and_the_first_kept():
    before, after = measured([0] * 7 + [1, 1, 0]), measured([1] * 7 + [0, 1, 0])
    flips = Flips.both_ways(Comparison(before, after), Asked)
    assert {way: turned.count for way, turned in flips.items()} == {"won": 7, "lost": 1}
    assert [flip.prompt for flip in flips["won"].examples] == [f"question {i}" for i in range(5)]
    assert flips["lost"].examples == [Flip("question 7", "right", "right", "wrong")]
    assert Flips.both_ways(Comparison(before), Asked) is None


def test_of_a_long_prompt_the_end_is_kept():
    flips = Flips.both_ways(Comparison(measured([0] * 10), measured([0] * 9 + [1])), Asked)
    [flip] = flips["won"].examples
    assert len(flip.prompt) == PROMPT
    assert flip.prompt.startswith("…")
    assert flip.prompt.endswith("long ")


def test_they_are_those_of_the_held_out_samples(model, tokenizer):
    options = {"targets": r"h\.1\.mlp", "accept": "best", "progress": False, "seed": 1}
    found = adapt(model, make_samples(48), tokenizer=tokenizer, **options)
    before, after = found.held_out.baseline.correct, found.held_out.edited.correct
    assert found.flips["won"].count == int((after & ~before).sum())
    assert found.flips["lost"].count == int((before & ~after).sum())
    for way, (first, second) in {"won": ("before", "after"), "lost": ("after", "before")}.items():
        for flip in found.flips[way].examples:
            assert getattr(flip, second) == flip.right != getattr(flip, first)
    assert found.to_dict()["flips"]["won"].keys() == {"count", "examples"}
