"""The memory that the user allows: what one matrix needs while it is factored, and what may be kept."""

from __future__ import annotations

import logging

logger = logging.getLogger(__name__)


class Budget:
    """Bytes of memory, of which some always stay free for work.

    Attributes:
        workspace: bytes that are never filled.
        free: bytes that may still be filled.
    """

    def __init__(self, total: int, workspace: int) -> None:
        self.workspace, self.free, self._warned = workspace, total - workspace, False

    def take(self, size: int) -> bool:
        """Fill this many bytes if they are free; the first time they are not, a warning says so."""
        if size <= self.free:
            self.free -= size
            return True
        if not self._warned:
            self._warned = True
            logger.warning(
                "The memory budget does not hold the factors of all targets; some are made again for every batch. "
                "A larger --memory-budget saves that time."
            )
        return False

    def give_back(self, size: int) -> None:
        """Free bytes that were taken."""
        self.free += size
