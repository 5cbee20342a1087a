"""A step as a LoRA adapter: a PEFT folder that needs no lasertri to load, to serve or to train further."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import pad

from lasertri.errors import LasertriError
from lasertri.measure.protocol import SampleBatch
from lasertri.model.preserve import preserved
from lasertri.model.targets import Target

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
            "expected peft, which a step is written for, but it is not installed; pip install peft, or write a plain "
            "checkpoint with merge"
        ) from error
    return peft


def write_adapter(
    factors: Factors, folder: Path, *, base: str = "", revision: str | None = None, modules: Sequence[str] = ()
) -> None:
    """Write `adapter_config.json` and `adapter_model.safetensors`.

    One rank for all layers and α = r, so that the factors are what is added; nothing but pairs of linear layers.

    Args:
        factors: of every layer `[m, r]` and `[r, n]`, whose product is added to the weight.
        base, revision: the model that it belongs to.
        modules: names that end these layers' paths and no others', which is what serving engines look for.
    """
    peft = require_peft()
    widest = max(left.shape[1] for left, _ in factors.values())
    rank = next((rank for rank in RANKS if rank >= widest), widest)
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=rank,
        lora_dropout=0.0,
        bias="none",
        target_modules=list(modules) or sorted(target.module for target in factors),
        fan_in_fan_out=any(target.transposed for target in factors),
        base_model_name_or_path=base or None,
        revision=revision,
        inference_mode=True,
    )
    config.save_pretrained(str(folder))
    tensors: dict[str, Tensor] = {}
    for target, (left, right) in factors.items():
        short = rank - left.shape[1]
        tensors[f"{PREFIX}{target.module}.lora_A.weight"] = pad(right, (0, 0, 0, short)).float().cpu().contiguous()
        tensors[f"{PREFIX}{target.module}.lora_B.weight"] = pad(left, (0, short)).float().cpu().contiguous()
    save_file(tensors, folder / WEIGHTS_NAME, {"format": "pt"})


def read_adapter(folder: Path, targets: Iterable[Target]) -> dict[Target, tuple[Tensor, Tensor]]:
    """The factors that `write_adapter` wrote for these targets."""
    tensors = load_file(folder / WEIGHTS_NAME)
    names = {target: f"{PREFIX}{target.module}" for target in targets}
    return {t: (tensors[f"{name}.lora_B.weight"], tensors[f"{name}.lora_A.weight"]) for t, name in names.items()}


def loadable(model: nn.Module, targets: Sequence[Target]) -> list[Target]:
    """The layers that peft loads an adapter for, found out by having it do so; of the others a warning tells.

    It takes the names of a mixture's dense layers for those of its experts, and will have nothing to do with what
    Mamba's kernels read for themselves.

    Raises:
        LasertriError: none is left.
    """
    if _loads(model, targets):
        return list(targets)
    alike: dict[str, list[Target]] = {}
    for target in targets:
        alike.setdefault(target.module.rpartition(".")[2], []).append(target)
    kept = [target for own in alike.values() if _loads(model, own) for target in own]
    left = [target.module for target in targets if target not in kept]
    if not kept:
        raise LasertriError(
            f"expected layers that peft loads an adapter for, but it does for none of {len(left)}, {left[0]} among "
            "them; name others with targets, or look for another kind of edit (edit='shrink')"
        )
    logger.warning("%d layers that peft loads no adapter for are left out, %s among them", len(left), left[0])
    return [target for target in targets if target in kept]


def _loads(model: nn.Module, targets: Sequence[Target]) -> bool:
    """Whether an adapter of these layers is loaded into them and no others."""
    factors = {target: (torch.zeros(target.shape[0], 1), torch.zeros(1, target.shape[1])) for target in targets}
    with preserved(model), tempfile.TemporaryDirectory(prefix="lasertri-") as directory, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what it cannot place, which is looked for here
        write_adapter(factors, Path(directory))
        try:
            with as_peft_loads_it(model, Path(directory)) as adapted:
                found = {path for path, module in adapted.named_modules() if hasattr(module, "lora_A")}
        except (ValueError, RuntimeError):  # no such module, or none that it would change
            return False
    return found == {f"{PREFIX}{target.module}" for target in targets}


@torch.no_grad()
def check_adapter(model: nn.Module, folder: Path, expected: Tensor, batch: SampleBatch) -> None:
    """Load the folder by plain peft and compare what it gives for a batch.

    Args:
        expected: what `batch.read` gave first with the step beside the model.

    Raises:
        LasertriError: it is not the same.
    """
    before, _ = batch.read(model)
    with as_peft_loads_it(model, folder):
        found, _ = batch.read(model)
    worst = float((found - expected).abs().max())
    close = CLOSE * (1 + float(expected.abs().max()))
    if next(model.parameters()).dtype.itemsize < 4:  # rounds where sums are made in another order
        close = max(close, SHARE * float((expected - before).abs().max()))
    if not worst <= close:
        raise LasertriError(
            f"expected the adapter to give what was measured, but loaded by peft it is off by {worst:.2g}; save with "
            "merge=True, and report this model's architecture"
        )


@contextmanager
def as_peft_loads_it(model: nn.Module, folder: Path) -> Iterator[nn.Module]:
    """Within, the model with the folder's adapter as plain peft reads it; afterwards its own modules are back."""
    peft = require_peft()
    own = set(vars(model))
    kept = ("_modules", "_forward_hooks", "_forward_pre_hooks")
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
        for name in set(vars(model)) - own:  # peft leaves its configuration behind
            delattr(model, name)
