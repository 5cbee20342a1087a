"""What only a CUDA device can show. These tests need nothing beyond torch, triton, transformers and pytest."""

from pathlib import Path

import pytest
import torch

from lasertri.ops.backends import BACKENDS

CUDA = torch.device("cuda")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if not item.path.is_relative_to(Path(__file__).parent):
            continue
        item.add_marker(pytest.mark.gpu)
        if not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="torch sees no CUDA device"))


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """Every backend; one that cannot run here says why."""
    obstacle = BACKENDS[request.param].why_not(CUDA)
    if obstacle:
        pytest.skip(obstacle)
    return request.param
