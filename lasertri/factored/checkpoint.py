"""Checkpoints of models with factored layers: once this is imported, transformers reads them by a quantizer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from lasertri.errors import LasertriError
from lasertri.factored.exchange import exchange, linear_at
from lasertri.factored.layer import FactoredLinear, Layout
from lasertri.ops import Partition
from lasertri.support.shown import reason, shown
from lasertri.version import __version__

METHOD = "lasertri"  # what transformers says that it does not know, where this is not imported
DESCRIPTION = "quantization_config"  # its field of config.json
PLACE = f"config.json, {DESCRIPTION}"


@register_quantization_config(METHOD)
class FactoredConfig(QuantizationConfigMixin):
    """Which layers are factored and how, and what the files beside must hold: `quantization_config` of config.json.

    Attributes:
        layers: layout of every factored layer, by module path.
        files: SHA-256 of the files of weights; none of a model in memory, which others may save by themselves.
    """

    def __init__(self, layers: Mapping[str, Layout], files: Mapping[str, str] | None = None) -> None:
        self.quant_method: Any = METHOD
        self.layers, self.files = dict(layers), dict(files or {})

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """What `to_dict` gave.

        Raises:
            LasertriError: it is damaged, or was changed since it was written.
        """
        try:
            given = dict(config_dict)
            expected = given.pop("sha256")
            files = {name: str(checksum) for name, checksum in given["files"].items()}
            layers = {layer: _layout(fields) for layer, fields in given["layers"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise LasertriError(f"{PLACE}: expected the description of factored layers, got {reason(error)}") from error
        if _sha256(given) != expected:
            raise LasertriError(f"{PLACE}: the description was changed after it was written; copy the checkpoint again")
        found = cls(layers, files)
        return (found, kwargs) if return_unused_kwargs else found

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON, with a checksum."""
        layers = {path: asdict(layout) for path, layout in self.layers.items()}
        described = {"quant_method": METHOD, "lasertri_version": __version__, "layers": layers, "files": self.files}
        return described | {"sha256": _sha256(described)}

    def require_files(self, paths: list[str]) -> None:
        """Check that these are the files of weights.

        Raises:
            LasertriError: one is missing, or has other content.
        """
        found = {Path(path).name: Path(path) for path in paths}
        for name, checksum in self.files.items():
            if name not in found or _file_sha256(found[name]) != checksum:
                state = "was changed after it was written" if name in found else "is missing"
                raise LasertriError(f"{shown(name)}, weights with factored layers, {state}; copy the checkpoint again")


@register_quantizer(METHOD)
class FactoredQuantizer(HfQuantizer):
    """Puts factored layers in their places before any weight is read; the model is an ordinary one afterwards."""

    quantization_config: FactoredConfig

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> None:
        self.quantization_config.require_files(kwargs.get("checkpoint_files") or [])
        layouts = self.quantization_config.layers
        exchange(model, {path: FactoredLinear.like(linear_at(model, path), layouts[path]) for path in layouts})

    def postprocess_model(self, model: PreTrainedModel, **_: Any) -> None:
        """Check what was read; leave no mark of quantisation, which would forbid what is allowed here."""
        for path in self.quantization_config.layers:
            index: Any = model.get_submodule(path).index
            if index is not None and not torch.equal(index.sort().values.cpu(), torch.arange(len(index))):
                raise LasertriError(f"expected an order of all rows of {path}, got some twice; copy it again")
        self.remove_quantization_config(model)
        model.config.quantization_config = FactoredConfig(self.quantization_config.layers)

    def is_serializable(self) -> bool:
        """See `HfQuantizer`."""
        return True

    @property
    def is_trainable(self) -> bool:
        """See `HfQuantizer`."""
        return True


def describe(layers: Mapping[str, FactoredLinear], folder: Path) -> None:
    """Write into the configuration beside the weights which layers are factored, and what the files hold."""
    path = folder / "config.json"
    files = {file.name: _file_sha256(file) for file in sorted(folder.glob("*.safetensors"))}
    description = FactoredConfig({name: layer.layout for name, layer in layers.items()}, files)
    config = json.loads(path.read_text(encoding="utf-8")) | {DESCRIPTION: description.to_dict()}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _layout(fields: Mapping[str, Any]) -> Layout:
    """What `asdict` gave, once it is known to be possible."""
    partition, ranks, kinds = Partition(fields["offsets"]), fields["ranks"], (fields["ordered"], fields["pivoted"])
    for rank, height in zip(ranks, partition.heights, strict=True):
        if rank is not None and not (type(rank) is int and 0 <= rank <= height):
            raise ValueError(f"the rank {shown(rank)} of a block of {height} rows")
    if not all(type(kind) is bool for kind in kinds):
        raise ValueError(f"ordered and pivoted {shown(kinds)}")
    return Layout(partition.offsets, tuple(ranks), *kinds)


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sha256(description: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()
