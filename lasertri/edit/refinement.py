"""One step of the singular values of what an adapter adds: ΔW = U Σ Vᵀ becomes U s Σ Vᵀ, s = 1 − η σ ∂L/∂σ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor, nn

from lasertri.edit.adapter import CONFIG_NAME, PREFIX, as_peft_loads_it
from lasertri.edit.shrink import Shrink
from lasertri.edit.step import REFINED, Step
from lasertri.errors import LasertriError
from lasertri.model.preserve import preserved
from lasertri.model.targets import Target, find_linear_layers
from lasertri.ops.pairs import balanced, singular
from lasertri.support.shown import reason

Spectra = Mapping[Target, tuple[Tensor, Tensor, Tensor]]


@dataclass(frozen=True)
class Refinement(Shrink):
    """What the singular values of an adapter's ΔW are multiplied by; of a model that has the adapter beside it.

    Attributes:
        changes: of every layer s − 1 `[r]`; applied, s stays from 0 to 2.
        spectra: of every layer U `[m, r]`, σ `[r]` and Vᵀ `[r, n]`, FP64.
    """

    spectra: Spectra = field(default_factory=dict, repr=False, compare=False)

    @contextmanager
    def beside(self, model: nn.Module) -> Iterator[None]:
        """See `Sizeable`: what changes is added to what the adapter adds."""
        with self._step(0.0).beside(model):
            yield

    def apply(self, model: nn.Module) -> None:
        """See `Edit`; the adapter must be in the weights."""
        self._step(0.0).apply(model)

    def adapter(self, model: nn.Module) -> Step:
        """The whole adapter, refined, for the model without it."""
        return self._step(1.0).known_by(model)

    def save(self, directory: str | Path) -> None:
        """Write the whole adapter, refined."""
        self._step(1.0).save(directory)

    def to_dict(self) -> dict[str, object]:
        """How it is named in reports."""
        return self._step(1.0).to_dict()

    def _values(self, target: Target, model: nn.Module) -> Tensor:
        return self.spectra[target][1]

    def _step(self, kept: float) -> Step:
        """U (kept · 1 + s − 1) Σ Vᵀ, as √ of it on both sides."""
        factors = {}
        for target, (u, sigma, vh) in self.spectra.items():
            scale = kept + self.changes[target].to(sigma).clamp(-1, 1) if target in self.changes else kept
            left, right = balanced(u * (scale * sigma), vh)
            factors[target] = left.float(), right.float()
        return Step(REFINED, max(len(sigma) for _, sigma, _ in self.spectra.values()), self.size, factors)


def adapter_of_others(model: nn.Module, folder: Path) -> Step:
    """What a folder's adapter adds to every linear layer, as peft loads it.

    Raises:
        LasertriError: it cannot be loaded into this model, or is no LoRA adapter of linear layers alone.
    """
    if not (folder / CONFIG_NAME).exists():
        raise LasertriError(f"{folder}: expected a folder with a LoRA adapter, found no {CONFIG_NAME}")
    found: dict[str, tuple[Tensor, Tensor]] = {}
    try:
        with preserved(model), as_peft_loads_it(model, folder) as adapted:
            for path, module in adapted.named_modules():
                for name in getattr(module, "lora_A", ()):
                    b, a = module.lora_B[name].weight, module.lora_A[name].weight
                    found[path.removeprefix(PREFIX)] = (module.scaling[name] * b.detach().float(), a.detach().float())
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, SafetensorError) as error:
        raise LasertriError(f"{folder}: expected a LoRA adapter of this model, but: {reason(error)}") from error
    layers = {target.module: target for target in find_linear_layers(model, ".") if target.expert is None}
    others = [path for path in found if path not in layers]
    if others or not found:
        got = f"one of {others[0]}" if others else "none of its factors"
        raise LasertriError(f"{folder}: expected a LoRA adapter of linear layers alone, got {got}; take another")
    factors = {layers[path]: pair for path, pair in found.items()}
    return Step(REFINED, max(a.shape[0] for _, a in found.values()), 0.0, factors)


def spectra_of(adapter: Step) -> Spectra:
    """The singular values of what it adds to every layer, with their vectors.

    Raises:
        LasertriError: it adds nothing.
    """
    spectra = {target: singular(left, right) for target, (left, right) in adapter.factors.items()}
    if not any(sigma.any() for _, sigma, _ in spectra.values()):
        raise LasertriError("expected an adapter that changes something, got one that is 0 everywhere; train it first")
    return spectra
