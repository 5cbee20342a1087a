"""Standard streams that never cost a result."""

from __future__ import annotations

import sys
from typing import Any, TextIO


class Stream:
    """A stream that writes what it can encode, and after a failure nothing more.

    Attributes:
        failure: why it cannot be written; None as long as it can.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.failure: OSError | ValueError | None = None
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")

    def write(self, text: str) -> int:
        """As much as is possible of it; the work goes on whatever becomes of it."""
        try:
            if self.failure is None:
                self._stream.write(text)
        except (OSError, ValueError) as failure:  # full or closed
            self.failure = failure
        return len(text)

    def flush(self) -> None:
        """See `write`."""
        try:
            if self.failure is None:
                self._stream.flush()
        except (OSError, ValueError) as failure:
            self.failure = failure

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def guard() -> None:
    """Put such streams in place of standard output and standard error."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, Stream):
            setattr(sys, name, Stream(stream))


def failure_of_output() -> OSError | ValueError | None:
    """Why standard output could not be written; None where it was, or where there is none."""
    if sys.stdout is not None:
        sys.stdout.flush()
    return getattr(sys.stdout, "failure", None)
