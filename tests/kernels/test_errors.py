import pytest
import tensor_cores
import torch
from errors import HALF_PRODUCTS, PRECISIONS

LONGEST = 131  # sum of these tests


@pytest.mark.parametrize("terms", [17, 53, LONGEST])
def test_tolerances_leave_room_for_tensor_cores(terms):
    unit = torch.finfo(torch.float32).eps
    for name, times in {**PRECISIONS, "half": HALF_PRODUCTS}.items():
        if name != "ieee":
            assert 2 * tensor_cores.error(name, terms) <= times * unit
