"""What a round shows of its edit."""

import dataclasses

import torch
from team import team

from lasertri.edit.spectrum import Spectrum
from lasertri.errors import NotConvergedError
from lasertri.measure.measurement import Measurement
from lasertri.search.round import Round
from lasertri.support.sharing import number, shared_by

BASELINE = Measurement(*[None] * len(dataclasses.fields(Measurement)))


class Counted:
    """An edit that counts how often its singular values are made."""

    def __init__(self, *, fails=False):
        self.made, self.fails = 0, fails

    def singular_values(self, model):
        self.made += 1
        if self.fails:
            raise NotConvergedError("no SVD converges")
        return [Spectrum.of(f"of process {model}", None, {"step": torch.ones(2)})]


def shown(group):
    """What every process shows, and how often it made it: sharing, each with a part, and where nothing converges."""
    found = []
    for sharded, fails in ((False, False), (True, False), (False, True)):
        edit = Counted(fails=fails)
        with shared_by(group, sharded=sharded):
            one = dataclasses.replace(Round.untried(BASELINE, "tried"), edit=edit).with_spectra(number())
        found.append(([each.target for each in one.spectra], edit.made))
    return found


def test_of_several_processes_the_first_makes_the_singular_values_for_all_or_each_that_holds_a_part():
    first = ["of process 0"]
    assert team(2, "search.test_round", "shown") == [
        [(first, 1), (first, 1), ([], 1)],
        [(first, 0), (first, 1), ([], 0)],
    ]
    assert shown(None) == [(first, 1), (first, 1), ([], 1)]
