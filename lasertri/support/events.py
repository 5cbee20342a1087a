"""What happens in a search, told to whoever follows it: a tracker, a bar of one's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

Listener = Callable[[dict[str, Any]], object]

_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


@contextmanager
def told_to(listener: Listener | None) -> Iterator[None]:
    """Within, this function is called with every event; None: no one is."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def tell(event: str, **what: Any) -> None:
    """Tell of an event, as a dictionary ready for JSON whose `event` is its name."""
    listener = _listener.get()
    if listener is not None:
        listener({"event": event, **what})
