"""Whether an edit could help, and what looking for one will cost."""

from dataclasses import replace

import numpy as np
import pytest

from lasertri.edit.candidate import Candidate
from lasertri.measure.measurement import Measurement
from lasertri.measure.significance import LEVEL, max_t_p_value
from lasertri.model.targets import Target
from lasertri.search.outlook import announce_sizes, announce_trials, no_step_can_help, no_truncation_can_help
from lasertri.search.settings import Settings

N = 40
GROUPS = [str(i) for i in range(N)]
TEST, BEST = Settings(progress=False), Settings(accept="best", progress=False)


def measured(wrong, *, loss=0.5):
    correct = np.arange(N) >= wrong
    return Measurement(correct.mean(), 0.5, None, loss, False, N, correct, losses=np.full(N, loss))


def test_right_answers_to_all_end_a_search_for_truncations():
    reason = "of 40 calibration samples none is answered wrongly, so there is nothing for a truncation to win"
    assert no_truncation_can_help(measured(0), GROUPS, TEST) == reason
    assert no_truncation_can_help(measured(0), GROUPS, TEST, confirmed=True) == reason
    assert no_truncation_can_help(measured(0), GROUPS, BEST) is None


@pytest.mark.parametrize("wrong", [4, 5])
def test_so_few_wrong_answers_that_no_p_value_is_low_enough_end_it_too(wrong):
    """The joint test itself, of a candidate that wins them all, agrees."""
    wins = (np.arange(N) < wrong).astype(float)
    lowest = max_t_p_value(wins[None], 0, GROUPS)
    reason = no_truncation_can_help(measured(wrong), GROUPS, TEST)
    assert (reason is not None) == (lowest > LEVEL) == (wrong == 4)
    if reason:
        assert reason == (
            "of 40 calibration samples only 4 could be won, being answered wrongly: a truncation that won all "
            "would have p = 0.062 at best, above 0.05"
        )
    assert no_truncation_can_help(measured(wrong), GROUPS, TEST, confirmed=True) is None
    assert no_truncation_can_help(measured(wrong), GROUPS, BEST) is None


def test_wrong_answers_of_one_group_count_once():
    assert no_truncation_can_help(measured(8), [str(i // 2) for i in range(N)], TEST) is not None
    assert no_truncation_can_help(measured(9), [str(i // 2) for i in range(N)], TEST) is None


def test_a_step_may_go_on_to_lower_the_loss_of_right_answers():
    assert no_step_can_help(measured(0, loss=0.5), TEST) is None
    assert no_step_can_help(measured(1, loss=0.001), TEST) is None
    reason = no_step_can_help(measured(0, loss=0.001), TEST)
    assert reason == (
        "of 40 calibration samples none is answered wrongly, and a log loss of 0.001 leaves nothing to lower"
    )
    among = no_step_can_help(replace(measured(0, loss=2e-6), choice_log_loss=2e-6), TEST)
    assert among.endswith("and a log loss among the choices of 2e-06 leaves nothing to lower")
    assert no_step_can_help(measured(0, loss=0.001), BEST) is None
    assert no_step_can_help(replace(measured(0, loss=0.001), majority_rate=None), TEST) is None  # of an objective


class Samples:
    def __init__(self, replayable):
        self.replayable = replayable

    def __len__(self):
        return 100


@pytest.mark.parametrize(("replayable", "race", "said"), [(True, True, "at most 40"), (False, False, "60")])
def test_before_the_trials_their_cost_is_said(capsys, replayable, race, said):
    targets = [Target(f"layers.{layer}.fc", layer, "fc_in", False, (16, 8)) for layer in (0, 2)]
    candidates = [Candidate(target, 1, ratio / 100) for target in targets for ratio in range(30)]
    announce_trials(candidates, 3, Samples(replayable), 6.0, Settings(edit="truncate", race=race))
    found = capsys.readouterr()
    minutes = 4 if replayable else 6
    expected = f"60 candidates of 2 matrices, {said} forward passes of 100 samples, about {minutes} min"
    assert (found.out, found.err) == ("", f"trials: {expected}\n")


def test_of_a_step_the_number_of_sizes_is_a_guess_and_without_progress_nothing_is_said(capsys):
    announce_sizes(2, 100, 2.0, Settings())
    assert capsys.readouterr().err == "trials: 5 sizes or so, 5 forward passes of 100 samples, about 10 s\n"
    announce_sizes(2, 100, 2.0, TEST)
    assert capsys.readouterr().err == ""
