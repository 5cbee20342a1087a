"""A value that holds within a block, in this thread or task."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

Value = TypeVar("Value")


@contextmanager
def within(variable: ContextVar[Value], value: Value) -> Iterator[None]:
    """Within, the variable has this value; after it, what it had before."""
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)
