"""The memory that the user allows: what one matrix needs while it is factored, and what may be kept."""

from __future__ import annotations

import logging

import torch
from torch import nn

logger = logging.getLogger(__name__)

DEFAULT = 4 << 30


def budget_for(model: nn.Module, asked: int | None = None) -> int:
    """The bytes asked for; else 4 GiB, or on CUDA half of what the fullest of the model's devices has free."""
    if asked is not None:
        return asked
    devices = {parameter.device for parameter in model.parameters() if parameter.is_cuda}
    return min((free_bytes(device) // 2 for device in devices), default=DEFAULT)


def free_bytes(device: torch.device) -> int:
    """What a CUDA device can still give: what the driver has, and what torch holds unused."""
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused


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
