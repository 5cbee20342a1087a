"""Parameters that `pytest` leaves out and `pytest -m ""` runs as well."""

import functools
from collections.abc import Iterable

import pytest

slow = functools.partial(pytest.param, marks=pytest.mark.slow)


def slow_but(*quick: object, of: Iterable[object]) -> list[object]:
    """All of them, those not named as slow ones."""
    return [value if value in quick else slow(value) for value in of]
