"""Products of plain torch that are not as wide as what they are made of."""

import pytest
import torch
from spectra import gaussian

from lasertri.ops import products
from lasertri.ops.products import symmetric_product


@pytest.mark.parametrize("size", [1, 5, 7, 23])
@pytest.mark.parametrize("lead", [(), (3,), (2, 3)])
@pytest.mark.parametrize("band", [5, 1024])
def test_a_symmetric_product_is_all_of_it_and_symmetric_to_the_last_digit(size, lead, band, monkeypatch):
    monkeypatch.setattr(products, "BAND", band)
    left = gaussian(*lead, size, 11)
    weights = torch.linspace(-1, 2, 11, dtype=torch.float64)
    found = symmetric_product(left * weights, left.mT)
    assert torch.equal(found, found.mT)
    torch.testing.assert_close(found, left * weights @ left.mT, rtol=1e-13, atol=1e-15)
