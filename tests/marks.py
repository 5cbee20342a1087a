"""Parameters that `pytest` leaves out and `pytest -m ""` runs as well."""

import functools

import pytest

slow = functools.partial(pytest.param, marks=pytest.mark.slow)
