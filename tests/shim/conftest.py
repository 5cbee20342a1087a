"""The library under test, compiled once; what takes minutes on the shim is slow."""

from pathlib import Path

import pytest
from shim.build import build, why_not
from shim.cases import Libraries

HERE = Path(__file__).parent
OBSTACLE = why_not()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE) and OBSTACLE:
            item.add_marker(pytest.mark.skip(reason=f"THE CUDA LIBRARY IS NOT TESTED: {OBSTACLE}"))


@pytest.fixture(scope="session")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Libraries:
    return Libraries.load(build(tmp_path_factory.mktemp("shim") / "built"))
