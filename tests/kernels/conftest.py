"""These tests run kernels: on a CUDA device, or interpreted in a process of their own (see `test_interpreted.py`)."""

import os
from pathlib import Path

import pytest
import torch

from lasertri.ops.backends import BACKENDS

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if not (INTERPRETED or torch.cuda.is_available()):
    collect_ignore_glob = ["test_*.py"]
elif INTERPRETED and (obstacle := BACKENDS["triton"].why_not(torch.device("cpu"))):
    raise pytest.UsageError(f"no kernel can be interpreted: {obstacle}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.gpu)


@pytest.fixture
def device() -> torch.device:
    return torch.device("cpu" if INTERPRETED else "cuda")
