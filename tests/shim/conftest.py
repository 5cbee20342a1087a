"""The library under test, compiled once; what takes minutes on the shim is slow."""

from pathlib import Path

import pytest

from shim.build import build, why_not
from shim.library import Libraries

HERE = Path(__file__).parent
OBSTACLE = why_not()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if not item.path.is_relative_to(HERE):
            continue
        if OBSTACLE:
            item.add_marker(pytest.mark.skip(reason=f"THE CUDA LIBRARY IS NOT TESTED: {OBSTACLE}"))
        if item.path.name != "test_device_tests.py":
            continue
        item.add_marker(pytest.mark.slow)
        values = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        if values.get("shape", (0, 0))[1] > 1000:
            item.add_marker(pytest.mark.skip(reason="the shim's solver takes minutes for a side of 1,000"))
        elif "several_panels" in item.name and values["turned"]:
            item.add_marker(pytest.mark.skip(reason="a million CUDA blocks take minutes; small panels have shown it"))


@pytest.fixture(scope="session")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Libraries:
    return Libraries.load(build(tmp_path_factory.mktemp("shim") / "built"))
