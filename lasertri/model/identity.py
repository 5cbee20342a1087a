"""What a model is, by content: what it gives for a batch depends on nothing else of it."""

from __future__ import annotations

import itertools
import re
from typing import Any

from torch import Tensor, nn

from lasertri.model.parallel import is_sharded
from lasertri.model.quantised import plain_parts
from lasertri.support.checksum import content_key

PATHS = ("_name_or_path", "_commit_hash")  # where it came from


def identity(model: nn.Module) -> list[object]:
    """Its modules, settings, weights and buffers and the kind of device they are on, ready for JSON."""
    own: Any = model
    configs = (getattr(own, name, None) for name in ("config", "generation_config"))
    settings = [
        {name: value for name, value in config.to_dict().items() if name not in PATHS}
        for config in configs
        if config is not None and hasattr(config, "to_dict")
    ]
    tensors = [
        (name, part)
        for name, tensor in itertools.chain(model.named_parameters(), model.named_buffers())
        if not is_sharded(tensor)  # each process has another part
        for part in plain_parts(tensor)
    ]
    modules = re.sub(r" at 0x[0-9a-f]+", "", repr(model))  # of functions
    return [modules, settings, [[name, *_known_by(tensor)] for name, tensor in tensors]]


def _known_by(tensor: Tensor) -> tuple[object, ...]:
    stored = tensor.detach().reshape(-1)  # which may be a single number
    return str(tensor.dtype), list(tensor.shape), tensor.device.type, content_key(stored)
