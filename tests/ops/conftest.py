"""Hypothesis runs the same examples every time: a test that fails on one machine fails on all."""

import hypothesis
import pytest
import torch
from torch import Tensor

from lasertri.ops.backends import BACKENDS

hypothesis.settings.register_profile("ops", deadline=None, derandomize=True, max_examples=50)
hypothesis.settings.load_profile("ops")


HERE = [name for name, backend in BACKENDS.items() if backend.why_not(torch.device("cpu")) is None]


@pytest.fixture(params=HERE)
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def weight() -> Tensor:
    """A 12x8 matrix for tests whose subject is not its values."""
    return torch.randn(12, 8, generator=torch.Generator().manual_seed(0))
