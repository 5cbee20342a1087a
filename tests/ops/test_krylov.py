"""A few leading singular values, as a picture shows them; their vectors: `test_lowrank_blocks.py`."""

import pytest
import torch
from spectra import gaussian, power_law, spiked

from lasertri.errors import NotConvergedError
from lasertri.ops import krylov

MATRICES = {
    "flat": gaussian(520, 610).bfloat16(),
    "spiked": spiked(520, 610).float(),
    "tall": power_law(520, 610, condition=1e3).mT,
    "small": gaussian(7, 11),
    "zero": torch.zeros(520, 610),
}


@pytest.mark.parametrize(("name", "rank"), [*((name, 7) for name in MATRICES), ("flat", 520), ("tall", 1)])
def test_the_largest_values_of_any_matrix(name, rank):
    found = krylov.leading_values(MATRICES[name], rank)
    expected = torch.linalg.svdvals(MATRICES[name].double())[:rank]
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=5e-3, atol=1e-7 * float(expected[0]))


def test_values_alone_take_fewer_passes_and_no_eigenproblem_of_the_side(monkeypatch):
    passes, passed = [], krylov._passed
    monkeypatch.setattr(krylov, "_passed", lambda *given: passes.append(1) or passed(*given))
    weight = gaussian(1, 520, 610)
    assert krylov.leading_vectors(weight, 16, torch.float64) is None
    tried = len(passes)
    assert krylov.leading_vectors(weight, 16, torch.float64, roughly=True) is not None
    assert len(passes) - tried < tried


def test_a_matrix_that_nothing_converges_on_is_told_of():
    with pytest.raises(NotConvergedError, match="expected values that can be factored"):
        krylov.leading_values(torch.full((4, 4), torch.nan), 2)
