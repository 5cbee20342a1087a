"""Processes that torchrun, or another launcher, has started together."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

NEEDED = ("RANK", "MASTER_ADDR", "MASTER_PORT")  # by torch, beside WORLD_SIZE
PATIENCE = timedelta(weeks=4)  # all wait while the first writes and pushes; of one that has ended they know at once


def world_size() -> int:
    """How many they are."""
    return int(os.environ.get("WORLD_SIZE", 1))


def rank() -> int:
    """This process's number among them; the first speaks for all."""
    return int(os.environ.get("RANK", 0)) if world_size() > 1 else 0


@contextmanager
def launched(*, parts: bool = False) -> Iterator[ProcessGroup | None]:
    """All of them, each with a GPU of its own where there are such; None for a process that is alone.

    Args:
        parts: whether they hold parts of one model, and so tell each other tensors on these GPUs.
    """
    if world_size() == 1:
        yield None
        return
    import torch
    import torch.distributed as dist
    import torch.distributed.nn  # see support/sharing.py

    from lasertri.errors import LasertriError

    if lacking := [name for name in NEEDED if name not in os.environ]:
        raise LasertriError(
            f"expected the environment of one of {world_size()} processes, as WORLD_SIZE says, but {lacking[0]} is not "
            "set; start them with torchrun, or unset WORLD_SIZE"
        )
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    how = "cpu:gloo,cuda:nccl" if parts and torch.cuda.is_available() else "gloo"
    dist.init_process_group(how, timeout=PATIENCE)
    try:
        yield dist.group.WORLD
    finally:
        dist.destroy_process_group()
