"""Singular values as a picture shows them: over blocks together, of large matrices at some places."""

import json

import pytest
import torch

from lasertri.edit.spectrum import PLACES, Spectrum
from lasertri.model.targets import Target

TARGET = Target("h.0.fc.weight", 0, "fc", False, (8, 4))


def test_squares_over_blocks_add_up_to_the_matrixs():
    torch.manual_seed(0)
    matrix = torch.randn(7, 5, dtype=torch.float64)
    values = torch.zeros(2, 4, dtype=torch.float64)
    values[0], values[1, :3] = (torch.linalg.svdvals(block) for block in matrix.split([4, 3]))
    found = Spectrum.before_and_after(TARGET, values, values / 2)
    assert (found.target, found.blocks, found.places) == ("h.0.fc", 2, [1, 2, 3, 4])
    squares = 2 * sum(value**2 for value in found.values["before"])
    assert squares == pytest.approx(float(matrix.square().sum()), rel=1e-3)
    assert found.change == pytest.approx(0.5)
    halves = [value / 2 for value in found.values["before"]]
    assert json.loads(json.dumps(found.to_dict()))["values"]["after"] == pytest.approx(halves, rel=1e-3)


def test_of_many_values_those_at_some_places_are_kept():
    values = torch.arange(4096, 0, -1).double()
    found = Spectrum.of(TARGET, None, {"before": values}, show=(1000, 1001, 5000))
    assert {1, 2, 3, 1000, 1001, 4096} <= set(found.places)
    assert len(found.places) <= PLACES + 2
    assert found.values["before"] == [float(f"{4097 - place:.4g}") for place in found.places]


def test_a_matrix_of_zeros_has_no_change():
    assert Spectrum.before_and_after(TARGET, torch.zeros(3), torch.zeros(3)).change == 0
