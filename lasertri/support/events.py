"""What happens in a search, told to whoever follows it: a tracker, a bar of one's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Any

from lasertri.support.ambient import within

Listener = Callable[[dict[str, Any]], object]

_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


def told_to(listener: Listener | None) -> AbstractContextManager[None]:
    """Within, this function is called with every event; None: no one is."""
    return within(_listener, listener)


def tell(event: str, what: Callable[[], Mapping[str, Any]]) -> None:
    """Tell of an event, as a dictionary ready for JSON whose `event` is its name.

    Args:
        what: gives the rest of it; where no one listens it is not asked.
    """
    listener = _listener.get()
    if listener is not None:
        listener({"event": event, **what()})
