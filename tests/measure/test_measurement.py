"""What a measurement says beside the baseline's, and in JSON."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from lasertri.measure.measurement import Measurement

BASELINE = Measurement(0.5, 0.6, 0.4, 1.5, False, 2, np.array([True, False]))


@pytest.mark.parametrize(("balanced", "sound"), [(0.39, False), (0.4, True), (0.41, True)])
def test_sound_is_what_does_not_lower_balanced_accuracy(balanced, sound):
    assert replace(BASELINE, balanced_accuracy=balanced).sound_beside(BASELINE) is sound
    assert not replace(BASELINE, balanced_accuracy=balanced, collapsed=True).sound_beside(BASELINE)


@pytest.mark.parametrize(("collapsed", "sound"), [(False, True), (None, True), (True, False)])
def test_without_shared_labels_sound_is_what_does_not_collapse(collapsed, sound):
    unlabelled = replace(BASELINE, balanced_accuracy=None, collapsed=collapsed)
    assert unlabelled.sound_beside(replace(BASELINE, balanced_accuracy=None)) is sound


def test_figures_are_json_without_the_samples():
    figures = {"accuracy": 0.5, "majority_rate": 0.6, "balanced_accuracy": 0.4, "log_loss": 1.5}
    figures |= {"choice_log_loss": None, "collapsed": False, "n": 2}
    assert BASELINE.to_dict() == figures
    without = replace(BASELINE, log_loss=math.inf).to_dict()
    assert json.loads(json.dumps(without, allow_nan=False)) == figures | {"log_loss": None}
