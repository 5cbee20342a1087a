"""A step as a LoRA adapter: a PEFT folder that needs no lasertri to load, to serve or to train further."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lasertri.edit.origin import Origin, as_parameters
from lasertri.edit.reading import checked, read_tensors
from lasertri.errors import LasertriError
from lasertri.measure.protocol import SampleBatch
from lasertri.model.preserve import preserved
from lasertri.model.quantised import computing_dtype, is_quantised
from lasertri.model.targets import Target
from lasertri.support.memory import is_out_of_memory
from lasertri.support.scratch import scratch_folder

logger = logging.getLogger(__name__)

CONFIG_NAME, WEIGHTS_NAME = "adapter_config.json", "adapter_model.safetensors"
RANKS = (8, 16, 32, 64)  # those that serving engines take
CLOSE = 1e-5  # of log-probabilities, relative to the largest
SHARE = 0.1  # of what the step changes
PREFIX = "base_model.model."

Factors = Mapping[Target, tuple[Tensor, Tensor]]


def require_peft() -> Any:
    """The library that reads what is written here.

    Raises:
        LasertriError: it is not installed.
    """
    try:
        import peft
    except ImportError as error:
        raise LasertriError(
            "expected peft, which a step is written by, merged or not, but it is not installed; pip install peft, or "
            "look for another kind of edit (edit='shrink')"
        ) from error
    return peft


def write_adapter(factors: Factors, folder: Path, origin: Origin, *, rank: int | None = None) -> None:
    """Write `adapter_config.json` and `adapter_model.safetensors`.

    One rank for all layers and α = r, so that the factors are what is added; nothing but pairs of linear layers, and of
    experts all those of a parameter together: `[E · r, n]` and `[m, r · E]`, zeros where an expert has no factors.

    Args:
        factors: of every layer or expert `[m, r]` and `[r, n]`, whose product is added to the weight.
        origin: the model that it belongs to.
        rank: by default the next that serving engines take.

    Raises:
        LasertriError: peft cannot express it.
    """
    peft = require_peft()
    layers = [target for target in factors if target.name not in origin.parameters]
    if any(target.expert is not None for target in layers):
        raise LasertriError("expected a step of experts that knows its model; save step.known_by(model)")
    alone = next((name for name, stored in origin.parameters.items() if stored == (1, True)), None)
    if alone is not None:
        raise LasertriError(
            f"expected experts that peft can adapt, got {alone}, one alone that is stored as [inputs, outputs]; name "
            "other targets (--targets)"
        )
    widest = max(left.shape[1] for left, _ in factors.values())
    if rank is None:
        rank = next((rank for rank in RANKS if rank >= widest), widest)
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=rank,
        lora_dropout=0.0,
        bias="none",
        target_modules=list(origin.modules) or sorted(target.module for target in layers),
        target_parameters=list(origin.parameters) or None,
        fan_in_fan_out=any(target.transposed for target in layers),
        base_model_name_or_path=origin.base or None,
        revision=origin.revision,
        inference_mode=True,
    )
    config.save_pretrained(str(folder))
    tensors: dict[str, Tensor] = {}
    for target, (left, right) in factors.items():
        count, turned = _stored(target, origin)
        a, b = (left.mT, right.mT) if turned else (right, left)
        name_a, name_b = _names(target, origin)
        if name_a not in tensors:
            tensors[name_a], tensors[name_b] = torch.zeros(count * rank, a.shape[1]), torch.zeros(len(b), rank * count)
        tensors[name_a].unflatten(0, (count, rank))[target.expert or 0, : len(a)] = a
        tensors[name_b].unflatten(1, (rank, count))[:, : b.shape[1], target.expert or 0] = b
    save_file(tensors, folder / WEIGHTS_NAME, {"format": "pt"})


def read_adapter(folder: Path, targets: Iterable[Target], origin: Origin) -> dict[Target, tuple[Tensor, Tensor]]:
    """The factors that `write_adapter` wrote for these targets.

    Raises:
        LasertriError: one is missing, of another shape or dtype, or not finite.
    """
    path, factors = folder / WEIGHTS_NAME, {}
    tensors = read_tensors(path)
    for target in targets:
        (count, turned), (name_a, name_b) = _stored(target, origin), _names(target, origin)
        inputs, outputs = reversed(target.shape) if not turned else target.shape
        if (target.expert or 0) >= count:
            raise LasertriError(f"{path}: expected one of {count} matrices, got {target}; copy the edit again")
        a = tensors.get(name_a)
        rank = 1 if a is None or a.dim() == 0 else max(1, len(a) // count)
        a = checked(path, name_a, a, (count * rank, inputs))
        b = checked(path, name_b, tensors.get(name_b), (outputs, rank * count))
        a, b = a.unflatten(0, (count, -1))[target.expert or 0], b.unflatten(1, (-1, count))[..., target.expert or 0]
        factors[target] = (a.mT, b.mT) if turned else (b, a)
    return factors


def _stored(target: Target, origin: Origin) -> tuple[int, bool]:
    """How many matrices its parameter holds, and whether peft takes rows for columns."""
    count, transposed = origin.parameters.get(target.name, (1, target.transposed))
    return count, transposed != target.transposed


def _names(target: Target, origin: Origin) -> tuple[str, str]:
    """What peft calls its factors. A module is wrapped for each of its parameters, the first innermost."""
    wrapped = [name for name in origin.parameters if name.rpartition(".")[0] == target.module]
    outside = len(wrapped) - 1 - wrapped.index(target.name) if target.name in wrapped else 0
    path = f"{PREFIX}{target.module}{outside * '.base_layer'}"
    return f"{path}.lora_A.weight", f"{path}.lora_B.weight"


def loadable(model: nn.Module, targets: Sequence[Target]) -> list[Target]:
    """The layers that peft loads an adapter for, found out by having it do so; of the others a warning tells.

    It will have nothing to do with what Mamba's kernels read for themselves. Parameters are given by their own paths.

    Raises:
        LasertriError: none is left.
    """
    parameters = as_parameters(targets, model)
    layers = [target for target in targets if target.name not in parameters]
    if not layers or _loads(model, layers):
        return list(targets)
    alike: dict[str, list[Target]] = {}
    for target in layers:
        alike.setdefault(target.module.rpartition(".")[2], []).append(target)
    kept = {target for own in alike.values() if _loads(model, own) for target in own}
    left = [target.module for target in layers if target not in kept]
    if not kept and not parameters:
        raise LasertriError(
            f"expected layers that peft loads an adapter for, but it does for none of {len(left)}, {left[0]} among "
            "them; name others with targets, or look for another kind of edit (edit='shrink')"
        )
    if left:  # but those that it loads one by one it loads together
        logger.warning("%d layers that peft loads no adapter for are left out, %s among them", len(left), left[0])
    return [target for target in targets if target in kept or target.name in parameters]


def _loads(model: nn.Module, targets: Sequence[Target]) -> bool:
    """Whether an adapter of these layers is loaded into them and no others."""
    factors = {target: (torch.zeros(target.shape[0], 1), torch.zeros(1, target.shape[1])) for target in targets}
    with preserved(model), scratch_folder() as directory, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what it cannot place, which is looked for here
        write_adapter(factors, directory, Origin())
        try:
            with as_peft_loads_it(model, directory) as adapted:
                found = {path for path, module in adapted.named_modules() if hasattr(module, "lora_A")}
        except (ValueError, RuntimeError) as error:  # no such module, or none that it would change
            if is_out_of_memory(error):
                raise
            return False
    return found == {f"{PREFIX}{target.module}" for target in targets}


def check_adapter(model: nn.Module, folder: Path, expected: Tensor, batch: SampleBatch) -> None:
    """Load the folder by plain peft and compare what it gives for a batch.

    Args:
        expected: what `batch.read` gave first with the step beside the model.

    Raises:
        LasertriError: it is not the same.
    """
    worst = how_far_off(model, folder, expected, batch)
    if worst:
        raise LasertriError(
            f"expected the adapter to give what was measured, but loaded by peft it is off by {worst:.2g}; report "
            "this model's architecture, and look for another kind of edit (edit='shrink')"
        )


@torch.no_grad()
def how_far_off(model: nn.Module, folder: Path, expected: Tensor, batch: SampleBatch) -> float:
    """The largest difference of what the folder, loaded by plain peft, gives for a batch; 0 if that is rounding."""
    before, _ = batch.read(model)
    with as_peft_loads_it(model, folder):
        found, _ = batch.read(model)
    worst = float((found - expected).abs().max())
    close = CLOSE * (1 + float(expected.abs().max()))
    if computing_dtype(model).itemsize < 4 or any(map(is_quantised, model.modules())):
        # rounds where sums are made in another order, activations too
        close = max(close, SHARE * float((expected - before).abs().max()))
    return 0.0 if worst <= close else worst


@contextmanager
def as_peft_loads_it(model: nn.Module, folder: Path) -> Iterator[nn.Module]:
    """Within, the model with the folder's adapter as plain peft reads it; afterwards its own modules are back."""
    peft = require_peft()
    own = [(module, set(vars(module))) for module in model.modules()]
    kept = ("_modules", "_parameters", "_forward_hooks", "_forward_pre_hooks")
    before = [(getattr(module, name), dict(getattr(module, name))) for module in model.modules() for name in kept]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by an old name
            adapted = peft.PeftModel.from_pretrained(model, str(folder))
        yield adapted
    finally:
        for entries, own_entries in before:  # also where peft gave up halfway
            entries.clear()
            entries.update(own_entries)
        for module, names in own:  # peft leaves its configuration behind, and how a layer is sharded
            for name in set(vars(module)) - names:
                delattr(module, name)
