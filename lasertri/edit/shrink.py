"""One step of the singular values of many layers: σ' = s σ, s = 1 − η σ ∂L/∂σ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from lasertri.edit.edit import CONFIG_NAME, FACTORS_NAME, Edit, weights_in_place, write_config
from lasertri.edit.origin import Origin
from lasertri.edit.reading import checked, described, field_of, read_tensors, targets_of
from lasertri.edit.spectrum import MOST, Spectrum
from lasertri.factors.store import FactorStore
from lasertri.model.parallel import part_like
from lasertri.model.targets import Target
from lasertri.ops import BlockFactors, Partition, block_svd, scale_blocks
from lasertri.ops.blocks import lengths
from lasertri.version import __version__


@dataclass(frozen=True)
class Shrink(Edit):
    """What the singular values of many linear layers and experts are multiplied by.

    Attributes:
        size: predicted decrease of the loss, as a share of what it was, before any value is clamped.
        changes: of every layer s − 1 `[K, r]`, FP32, K the blocks of its rows; applied, s stays from 0 to 2.
        store: factors of the weights, where they are known; else they are made again.
        origin: what it was made of; None until that is looked at.
    """

    size: float
    changes: Mapping[Target, Tensor] = field(repr=False)
    store: FactorStore | None = field(default=None, repr=False, compare=False)
    origin: Origin | None = field(default=None, repr=False)

    @property
    def targets(self) -> list[Target]:
        """Every layer that it changes."""
        return list(self.changes)

    def scaled(self, factor: float) -> Shrink:
        """The same direction, so many times as long."""
        changes = {target: factor * change for target, change in self.changes.items()}
        return replace(self, size=factor * self.size, changes=changes)

    def averaged(self, others: Sequence[Shrink]) -> Shrink:
        """The mean of this and others of its size."""
        edits = [self, *others]
        sides: dict[Target, list[Tensor]] = {}
        for edit in edits:
            for target, change in edit.changes.items():
                sides.setdefault(target, []).append(change)
        changes = {target: torch.stack(own).sum(dim=0) / len(edits) for target, own in sides.items()}
        return replace(self, changes=changes)

    def known_by(self, model: nn.Module) -> Shrink:
        """The same, with a note of the model that it was made of."""
        return replace(self, origin=Origin.of(model, self.changes))

    def apply(self, model: nn.Module) -> None:
        """See `Edit`."""
        if self.origin is not None:
            self.origin.require(model)
        for target in self.changes:
            target.write(target.parameter(model), self._scaled(target, model))

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """See `Edit`; the layers' weights are kept meanwhile."""
        if self.origin is not None:
            self.origin.require(model)
        with self.beside(model):
            yield

    @contextmanager
    def beside(self, model: nn.Module) -> Iterator[None]:
        """The same, without a look at what the weights are."""
        with weights_in_place(model, self.changes, lambda target: self._scaled(target, model)):
            yield

    def save(self, directory: str | Path) -> None:
        """Write one number for every singular value."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        tensors = {str(target): change.cpu().contiguous() for target, change in self.changes.items()}
        safetensors.torch.save_file(tensors, directory / FACTORS_NAME)
        config: dict[str, Any] = {"lasertri_version": __version__, "kind": "shrink", "size": self.size}
        config |= {"targets": [asdict(t) for t in self.changes], "origin": (self.origin or Origin()).to_dict()}
        write_config(directory / CONFIG_NAME, config, directory / FACTORS_NAME)

    @classmethod
    def read(cls, directory: Path, config: dict[str, Any]) -> Shrink:
        """See `Edit.load`."""
        with described(directory / CONFIG_NAME):
            size, targets = field_of(config, "size", int, float), targets_of(config)
            origin = Origin.from_dict(field_of(config, "origin", dict), targets)
        path = directory / FACTORS_NAME
        tensors = read_tensors(path)
        changes = {}
        for target in targets:
            own, (rows, columns) = tensors.get(str(target)), target.shape
            blocks = 1 if own is None or own.dim() == 0 or not 0 < len(own) <= rows else len(own)
            shape = blocks, max(lengths(Partition.consecutive(rows, blocks).offsets, columns))
            changes[target] = checked(path, str(target), own, shape)
        return cls(size, changes, origin=origin)

    def singular_values(self, model: nn.Module) -> list[Spectrum]:
        """See `Edit`; those whose values change most, each as a share of itself."""
        scales = {target: 1 + change.cpu().clamp(-1, 1) for target, change in self.changes.items()}
        order = sorted(scales, key=lambda target: float((scales[target] - 1).square().mean()), reverse=True)
        known = {target: self._values(target, model).cpu() for target in order[:MOST]}
        return [Spectrum.before_and_after(target, own, scales[target] * own) for target, own in known.items()]

    def to_dict(self) -> dict[str, object]:
        """How it is named in reports."""
        return {"kind": "shrink", "direction": "singular values", "rank": None, "size": self.size}

    def _scaled(self, target: Target, model: nn.Module) -> Tensor:
        """The weight with its values moved, or this process's part of it."""
        weight = target.whole(model)
        change, factors = self.changes[target].to(weight.device), self._factors(target, model)
        scaled = scale_blocks(weight, (1 + change).clamp(0, 2), factors=factors, precision="float32")
        return part_like(target.parameter(model), scaled)

    def _values(self, target: Target, model: nn.Module) -> Tensor:
        """The singular values that the changes are of."""
        return self._factors(target, model).sigma

    def _factors(self, target: Target, model: nn.Module) -> BlockFactors:
        blocks = len(self.changes[target])
        if self.store is not None:
            return self.store.of(target, blocks)
        return block_svd(target.whole(model), blocks=blocks)
