"""These tests run kernels: on a CUDA device, or interpreted in a process of their own (see `test_interpreted.py`)."""

import os

import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.gpu)


@pytest.fixture
def device() -> torch.device:
    if os.environ.get("TRITON_INTERPRET") == "1":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device; test_interpreted.py runs this with TRITON_INTERPRET=1")
    return torch.device("cuda")
