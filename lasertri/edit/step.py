"""One step of many layers along their gradients, each of low rank: ΔW = −η D, which is a LoRA adapter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lasertri.edit.adapter import WEIGHTS_NAME, check_adapter, read_adapter, write_adapter
from lasertri.edit.edit import CONFIG_NAME, Edit, weights_in_place, write_config
from lasertri.edit.origin import Origin, as_parameters
from lasertri.edit.reading import described, field_of, targets_of
from lasertri.edit.spectrum import MOST, Spectrum
from lasertri.measure.protocol import SampleBatch
from lasertri.model.calls import Call, led
from lasertri.model.parallel import here, low_rank, require_styles, sides_here
from lasertri.model.preserve import preserved
from lasertri.model.targets import Target
from lasertri.ops.pairs import singular
from lasertri.support.memory import as_memory_allows
from lasertri.support.shown import LONGEST, shown
from lasertri.version import __version__

REFINED = "refined"  # the direction of an adapter of others


@dataclass(frozen=True)
class Step(Edit):
    """What is added to the weights of many linear layers and experts: `left @ right` of each.

    Attributes:
        direction: "plain", the gradient itself, or "whitened", see `ops.whiten_blocks`; "refined", what `Refinement`
            made of an adapter, which keeps its rank.
        rank: of every layer, of which a fold's step has its part; a layer of fewer rows or columns has its own.
        size: predicted decrease of the loss, as a share of what it was.
        factors: of every layer `[m, r]` and `[r, n]`, FP32, with −η in the left one; none of an expert without tokens.
        merge: whether it is added to the weights when it is saved, in their dtype, instead of standing beside them.
        origin: what it is a step from; None until that is looked at.
    """

    content: ClassVar[str] = WEIGHTS_NAME

    direction: str
    rank: int
    size: float
    factors: Mapping[Target, tuple[Tensor, Tensor]] = field(repr=False)
    merge: bool = False
    origin: Origin | None = field(default=None, repr=False)

    @property
    def targets(self) -> list[Target]:
        """Every layer that it changes."""
        return list(self.factors)

    @property
    def dense(self) -> bool:
        """Whether it is merged."""
        return self.merge

    def place(self, number: int, *, beside: bool = True) -> str:
        """A checkpoint with an adapter beside it would be taken for the adapter's base."""
        return "adapter" if self.merge and beside else super().place(number)

    def scaled(self, factor: float) -> Step:
        """The same direction, so many times as long."""
        factors = {target: (factor * left, right) for target, (left, right) in self.factors.items()}
        return replace(self, size=factor * self.size, factors=factors)

    def averaged(self, others: Sequence[Step]) -> Step:
        """The mean of this and others of its size, with the ranks of all of them together."""
        steps = [self, *others]
        sides: dict[Target, list[tuple[Tensor, Tensor]]] = {}
        for step in steps:
            for target, pair in step.factors.items():
                sides.setdefault(target, []).append(pair)
        factors = {
            target: (torch.cat([left for left, _ in pairs], dim=1) / len(steps), torch.cat([r for _, r in pairs]))
            for target, pairs in sides.items()
        }
        return replace(self, factors=factors)

    def known_by(self, model: nn.Module, *, merge: bool = False, checksums: Mapping[Target, str] | None = None) -> Step:
        """The same, with a note of the model that it is a step from (see `Origin.of`), and how it is to be saved."""
        return replace(self, merge=merge, origin=Origin.of(model, self.factors, checksums=checksums))

    def apply(self, model: nn.Module) -> None:
        """Add it to the weights, rounded once to their dtype: below BF16's resolution much of a step is lost."""
        if self.origin is not None:
            self.origin.require(model)
        for target in self.factors:
            target.require_plain(model, sharded=True)
        for target in self.factors:
            target.write(target.parameter(model), self._merged(target, model))

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """See `Edit`: beside the weights, or merged into them."""
        if self.origin is not None:
            self.origin.require(model)
        if self.merge:
            with weights_in_place(model, self.factors, lambda target: self._merged(target, model)):
                yield
        else:
            with self.beside(model):
                yield

    @contextmanager
    def beside(self, model: nn.Module) -> Iterator[None]:
        """Within, every layer's output has the step added, in FP32 or better; no weight is touched.

        Of an expert's, only what rounding to the weight's dtype leaves of it: peft adds it to the weight.
        """
        require_styles(model, [target.module for target in self.targets])
        rounded = as_parameters(self.targets, model)
        sides = {}
        for target, pair in self.factors.items():
            shards = target.shards(model)
            left, right = (side.to(target.device(model)) for side in pair)
            sides[target] = *sides_here(left, right, shards), shards

        def add(target: Target, inputs: Tensor, call: Call) -> Tensor:
            output, (left, right, shards) = call(inputs), sides[target]
            dtype = torch.promote_types(output.dtype, right.dtype)
            if target.name in rounded and output.dtype != dtype:
                weight = target.view(target.parameter(model)).to(dtype)
                added = inputs.to(dtype) @ ((weight + left @ right).to(output.dtype).to(dtype) - weight).mT
            else:
                added = low_rank(inputs.to(dtype), left.to(dtype), right.to(dtype), shards)
            return (output.to(dtype) + added).to(output.dtype)

        with led(model, self.targets, add):
            yield

    def save(self, directory: str | Path) -> None:
        """Write a PEFT folder, with `lasertri_config.json` beside it."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        origin = self.origin or Origin()
        write_adapter(self.factors, directory, origin, rank=self.rank if self.direction == REFINED else None)
        config: dict[str, Any] = {"lasertri_version": __version__, "kind": "step"}
        config |= {"direction": self.direction, "rank": self.rank, "size": self.size}
        config |= {"targets": [asdict(target) for target in self.factors], "origin": origin.to_dict()}
        write_config(directory / CONFIG_NAME, config, directory / WEIGHTS_NAME)

    def check(self, model: nn.Module, directory: Path, batch: SampleBatch) -> None:
        """See `Edit`: by plain peft."""

        def check(part: SampleBatch) -> None:
            with self.beside(model), torch.no_grad():
                expected, _ = part.read(model)
            check_adapter(model, directory, expected, part)

        with preserved(model):
            next(as_memory_allows([batch], check))

    @classmethod
    def read(cls, directory: Path, config: dict[str, Any]) -> Step:
        """See `Edit.load`."""
        with described(directory / CONFIG_NAME):
            direction, rank = field_of(config, "direction", str), field_of(config, "rank", int)
            size, targets = field_of(config, "size", int, float), targets_of(config)
            if not direction.isprintable() or len(direction) > LONGEST or rank < 1:
                raise ValueError(f"the direction {shown(direction)} of rank {rank}")
            origin = Origin.from_dict(field_of(config, "origin", dict), targets)
        return cls(direction, rank, size, read_adapter(directory, targets, origin), origin=origin)

    def singular_values(self, model: nn.Module) -> list[Spectrum]:
        """See `Edit`; of what is added alone: those of the weights are not soon had."""
        norms = {target: _norms(target, pair, model) for target, pair in self.factors.items()}
        order = sorted(norms, key=lambda target: norms[target][0] / (norms[target][1] or 1.0), reverse=True)
        spectra = []
        for target in order[:MOST]:
            added, own = norms[target]
            values = {"step": singular(*self.factors[target])[1]}
            spectra.append(Spectrum.of(target, added / own if own else None, values))
        return spectra

    def to_dict(self) -> dict[str, object]:
        """How it is named in reports."""
        kind = "refine" if self.direction == REFINED else "step"
        return {"kind": kind, "direction": self.direction, "rank": self.rank, "size": self.size}

    def _merged(self, target: Target, model: nn.Module) -> Tensor:
        """The weight with the step, or this process's part of it."""
        stored = target.parameter(model)
        left, right = (side.to(stored.device) for side in self.factors[target])
        left, right = sides_here(left, right, stored)
        weight, change = target.view(here(stored)), left @ right
        return (weight + change).to(weight.dtype)  # added in the wider dtype of the two


def _norms(target: Target, factors: tuple[Tensor, Tensor], model: nn.Module) -> tuple[float, float]:
    """Of what is added to a layer, and of its weight; 0 of a quantised one."""
    left, right = (side.double() for side in factors)
    added = float(((left.mT @ left) * (right @ right.mT)).sum().clamp(min=0).sqrt())
    if target.is_quantised(model):
        return added, 0.0
    weight = target.whole(model)
    return added, float(torch.linalg.vector_norm(weight, dtype=torch.promote_types(weight.dtype, torch.float32)))
