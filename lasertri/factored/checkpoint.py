"""Checkpoints of models with factored layers: only `load_model` reads them, and checks them when it does."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from transformers import PreTrainedModel

from lasertri.errors import LasertriError
from lasertri.factored.exchange import exchange, linear_at
from lasertri.factored.layer import FactoredLinear, Layout
from lasertri.ops import Partition
from lasertri.support.shown import reason, shown
from lasertri.version import __version__

DESCRIPTION_NAME = "lasertri_factored.json"
# model.factored.safetensors: without the variant's name transformers finds no weights, and says so
VARIANT = "factored"


def write_description(layers: Mapping[str, FactoredLinear], folder: Path) -> None:
    """Write beside the weights which layers are factored, how, and what the files must hold."""
    description: dict[str, Any] = {
        "lasertri_version": __version__,
        "layers": {path: asdict(layer.layout) for path, layer in layers.items()},
        "files": {path.name: _file_sha256(path) for path in sorted(folder.glob("model*"))},
    }
    description["sha256"] = _description_sha256(description)
    (folder / DESCRIPTION_NAME).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def read_layouts(name: str | Path, *, revision: str | None = None) -> dict[str, Layout]:
    """The factored layers of a folder or a model on the hub by module path; none of an ordinary checkpoint.

    Raises:
        LasertriError: description or weights are missing, damaged, or were changed since they were written.
    """
    path = _find(name, DESCRIPTION_NAME, revision)
    if path is None:
        return {}
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
        expected = description.pop("sha256")
        files = dict(description["files"])
        layouts = {layer: _layout(fields) for layer, fields in description["layers"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise LasertriError(f"{path}: expected the description of factored layers, got {reason(error)}") from error
    if _description_sha256(description) != expected:
        raise LasertriError(f"{path}: the description was changed after it was written; copy the checkpoint again")
    for file, checksum in files.items():
        if not file.startswith("model") or file != Path(file).name:
            raise LasertriError(f"{path}: expected files beside it, got {shown(file)}; take another copy")
        weights = _find(name, file, revision)
        if weights is None or _file_sha256(weights) != checksum:
            state = "is missing" if weights is None else "was changed after it was written"
            raise LasertriError(f"{name}: {file} {state}; copy the checkpoint again")
    return layouts


def _layout(fields: Mapping[str, Any]) -> Layout:
    """What `asdict` gave, once it is known to be possible."""
    partition, ranks, kinds = Partition(fields["offsets"]), fields["ranks"], (fields["ordered"], fields["pivoted"])
    for rank, height in zip(ranks, partition.heights, strict=True):
        if rank is not None and not (type(rank) is int and 0 <= rank <= height):
            raise ValueError(f"the rank {shown(rank)} of a block of {height} rows")
    if not all(type(kind) is bool for kind in kinds):
        raise ValueError(f"ordered and pivoted {shown(kinds)}")
    return Layout(partition.offsets, tuple(ranks), *kinds)


def load_factored(
    base: type[PreTrainedModel], layouts: Mapping[str, Layout], name: str | Path, **options: Any
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """`base.from_pretrained` with factored layers in their places before any weight is read, and its report."""

    def build(self: PreTrainedModel, *arguments: Any, **more: Any) -> None:
        base.__init__(self, *arguments, **more)
        exchange(self, {path: FactoredLinear.like(linear_at(self, path), layouts[path]) for path in layouts})

    # transformers makes the model within from_pretrained, on the meta device: it is a class that it has to be told
    changed: Any = type(base.__name__, (base,), {"__init__": build, "__module__": base.__module__})
    model, report = changed.from_pretrained(name, variant=VARIANT, output_loading_info=True, **options)
    model.__class__ = base
    for path in layouts:
        index = model.get_submodule(path).index
        if index is not None and not torch.equal(index.sort().values.cpu(), torch.arange(len(index))):
            raise LasertriError(f"{name}: expected an order of all rows of {path}, got some twice; copy it again")
    return model, report


def _find(name: str | Path, file: str, revision: str | None) -> Path | None:
    """A file of a folder or of a model on the hub, where there is one."""
    if Path(name).is_dir():
        path = Path(name) / file
        return path if path.is_file() else None
    try:
        return Path(hf_hub_download(str(name), file, revision=revision))
    except EntryNotFoundError:
        return None


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _description_sha256(description: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()
