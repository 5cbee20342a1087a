"""Hypothesis runs the same examples every time: a test that fails on one machine fails on all."""

import os
from pathlib import Path

import hypothesis
import pytest
import torch
from torch import Tensor

from lasertri.ops import eigen, products
from lasertri.ops.backends import BACKENDS

hypothesis.settings.register_profile("ops", deadline=None, derandomize=True, max_examples=50)
hypothesis.settings.load_profile("ops")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Interpreted, an op takes long: of each test on the kernels only the first case is not slow."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        return
    cases: dict[str, list[pytest.Item]] = {}
    for item in items:
        inside = isinstance(item, pytest.Function) and item.path.is_relative_to(Path(__file__).parent)
        if inside and hasattr(item, "callspec") and item.callspec.params.get("backend") == "triton":
            cases.setdefault(f"{item.path}::{item.originalname}", []).append(item)
    for case in cases.values():
        for item in case[1:]:
            item.add_marker(pytest.mark.slow)


HERE = [name for name, backend in BACKENDS.items() if backend.why_not(torch.device("cpu")) is None]


DIVIDED = "gram, divided"  # with eigenproblems of more than 8 divided, as a GPU's are where they are large


@pytest.fixture
def divided(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU that multiplies FP64 fast, if what is larger than 8 were large."""
    monkeypatch.setattr(eigen, "by_products", lambda _: True)
    monkeypatch.setattr(eigen, "SOLVED", 8)
    monkeypatch.setattr(products, "BAND", 5)


@pytest.fixture(params=[*HERE, DIVIDED])
def backend(request: pytest.FixtureRequest) -> str:
    if request.param != DIVIDED:
        return request.param
    request.getfixturevalue("divided")
    return "gram"


@pytest.fixture
def weight() -> Tensor:
    """A 12x8 matrix for tests whose subject is not its values."""
    return torch.randn(12, 8, generator=torch.Generator().manual_seed(0))
