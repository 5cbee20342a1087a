"""A search that processes share finds what one process finds."""

import functools
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from marks import slow
from team import team
from tiny import make_model, make_samples, make_tokenizer
from torch import nn

from lasertri import Objective, adapt
from lasertri.errors import LasertriError

KINDS = {
    "step": ("llama", {"edit": "step", "rank": 8}),
    "experts": ("qwen3_moe", {"edit": "step", "rank": 8}),
    "truncate": ("gptj", {"blocks": (1, 3), "ratios": (0.5, 0.1, 0.0), "count": 2, "max_edits": 2}),
    "taylor": ("gptj", {"edit": "truncate", "score": "taylor", "blocks": 2, "ratios": 0.1, "count": 3, "race": False}),
    "shrink": ("gpt2", {"edit": "shrink"}),
}


def search(group, kind):
    """Figures and edits of one kind of search, its figures to be held against others'."""
    architecture, options = KINDS[kind]
    result = adapt(
        make_model(architecture),
        make_samples(48),
        tokenizer=make_tokenizer(architecture),
        accept="best",
        progress=False,
        group=group,
        **options,
    )
    return figures(result)


def figures(result):
    whole = result.to_dict()
    trials = [(trial["accuracy"], trial["log_loss"]) for trial in whole["trials"]]
    return {
        "accuracy": (whole["baseline"]["accuracy"], *(accuracy for accuracy, _ in trials)),
        "loss": (whole["baseline"]["log_loss"], *(loss for _, loss in trials)),
        "chosen": [edit.to_dict() for edit in result.edits],
        "held out": (result.held_out.baseline.accuracy, result.held_out.edited and result.held_out.edited.accuracy),
        "side effects": whole["side_effects"],
    }


def same(one, other):
    """Equal but for rounding: batches are of other samples."""
    assert one["accuracy"] == other["accuracy"]
    assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
    assert [{**edit, "size": 0} for edit in one["chosen"]] == [{**edit, "size": 0} for edit in other["chosen"]]
    assert one["held out"] == other["held out"]


@pytest.mark.parametrize(
    ("size", "kind"),
    [(2, "step"), slow(3, "step"), slow(2, "experts"), slow(2, "truncate"), slow(3, "taylor"), slow(2, "shrink")],
)
def test_processes_find_what_one_finds(size, kind):
    alone, found = search(None, kind), team(size, "test_processes", "search", kind)
    assert alone["chosen"] or kind == "experts"
    for each in found:
        assert each == found[0]
        same(each, alone)
