"""A factored layer whose numbers lie in a file mapped into memory, which the system can drop and read again."""

from __future__ import annotations

import os
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from lasertri.errors import LasertriError
from lasertri.factored.layer import FactoredLinear
from lasertri.support.shown import failure
from lasertri.support.workspace import workspace


def require_writable(place: Path) -> None:
    """Find out before the work whether factors can be moved here.

    Raises:
        LasertriError: they cannot.
    """
    try:
        with workspace(place):
            return
    except OSError as error:
        raise _unwritable(place, error) from error


def mapped(layer: FactoredLinear, place: Path) -> FactoredLinear:
    """The layer, its factors moved to a file on the file system of this folder, unless they are on a GPU.

    The file has no name afterwards, and so is gone with the layer, or with the process, however that ends.

    Raises:
        LasertriError: it cannot be written.
    """
    if layer.weight.device.type != "cpu" or os.name != "posix":  # elsewhere what is mapped cannot be unlinked
        return layer
    own = {name: tensor for name, tensor in layer.state_dict().items() if name != "bias"}  # which is the model's
    try:
        with workspace(place) as folder:
            path = folder / "layer.safetensors"
            save_file(own, path)
            layer.load_state_dict(load_file(path), assign=True, strict=False)
    except (OSError, SafetensorError) as error:
        raise _unwritable(place, error) from error
    return layer


def _unwritable(place: Path, error: Exception) -> LasertriError:
    return LasertriError(f"{place}: expected a folder that factors can be written to: {failure(error)}")
