"""Processes that torchrun, or another launcher, has started together."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def world_size() -> int:
    """How many they are."""
    return int(os.environ.get("WORLD_SIZE", 1))


def rank() -> int:
    """This process's number among them; the first speaks for all."""
    return int(os.environ.get("RANK", 0)) if world_size() > 1 else 0


@contextmanager
def launched() -> Iterator[ProcessGroup | None]:
    """All of them, each with a GPU of its own where there are such; None for a process that is alone."""
    if world_size() == 1:
        yield None
        return
    import torch
    import torch.distributed as dist

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    dist.init_process_group("gloo")
    try:
        yield dist.group.WORLD
    finally:
        dist.destroy_process_group()
