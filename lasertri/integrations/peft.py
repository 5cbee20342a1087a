"""PEFT's starts of an adapter that look at the model, PiSSA, LoRA-GA and CorDA, by lasertri's ops and what it streams.

LoraLayer.pissa_init = lasertri.integrations.peft.pissa_init  # of peft.tuners.lora.layer
model = lasertri.integrations.peft.lora_ga(model, config, samples)  # in place of preprocess_loraga and get_peft_model
model = lasertri.integrations.peft.corda(model, config, samples)  # in place of preprocess_corda and get_peft_model
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.layer import LoraLayer
from peft.utils.other import transpose
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lasertri.compression.moments import InputMoments
from lasertri.data.files import SampleSource, as_samples
from lasertri.errors import LasertriError
from lasertri.factors.budget import budget_for
from lasertri.language.samples import EncodedSamples
from lasertri.model.editable import require_editable
from lasertri.model.preserve import preserved
from lasertri.model.targets import Target, find_linear_layers
from lasertri.ops import lowrank_blocks
from lasertri.ops.corda import corda_factors
from lasertri.ops.finite import all_finite
from lasertri.search.problem import tokenizer_of
from lasertri.search.settings import Settings
from lasertri.search.tokens import Room, Tokens, gather_tokens, weight_gradient
from lasertri.support.shown import shown


@torch.no_grad()
def pissa_init(self: Any, adapter_name: str, init_lora_weights: str) -> None:
    """Put a matrix's leading singular components into the adapter, and leave the rest in the weight.

    A method for peft's `LoraLayer`, which `get_peft_model` calls where a `LoraConfig` says
    `init_lora_weights="pissa"`; the adapter, the residual and how peft saves them are as ever.

    Args:
        adapter_name: of the adapter that is started.
        init_lora_weights: "pissa", or "pissa_niter_N", whose N is not used: nothing is drawn here.

    Raises:
        LasertriError: a weight that is not in FP32, FP16 or BF16, or whose matrix is smaller than the rank, or a
            lora_alpha that is not above 0.
    """
    weight, rank = self.get_base_layer().weight, self.r[adapter_name]
    _require_dtype(weight, "PiSSA")
    _require_alpha(self.lora_alpha[adapter_name])
    matrix = transpose(weight.data, self.fan_in_fan_out)
    if rank > min(matrix.shape):
        raise LasertriError(
            f"expected r of at most {min(matrix.shape)} for a matrix {list(matrix.shape)}, got r={rank}; lower it, or "
            "give this layer its own in rank_pattern"
        )
    found = lowrank_blocks(matrix, rank=rank, precision="float32")
    _split(self, adapter_name, found.left, found.right[0])


def lora_ga(
    model: PreTrainedModel,
    config: LoraConfig,
    samples: SampleSource | Iterable[Any],
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    delimiter: str = " ",
    chat: bool = False,
    batch_size: int = 16,
) -> PeftModel:
    """Give a model adapters that start along the gradient over some samples (LoRA-GA, arXiv 2407.05000).

    What peft's `preprocess_loraga` and `get_peft_model` do, without all layers' gradients at once, which take as much
    memory as the layers: of one backward pass the tokens are kept, as many as the memory budget of `adapt` holds, and
    each layer's gradient is made of them when peft starts its adapter.

    Args:
        model: which gets the adapters, in place, and weights that make up for them: it still gives what it gave.
        config: with `init_lora_weights="lora_ga"` and a `lora_ga_config`.
        samples: as for `adapt`; the loss is minus the log-probability of a sample's right answer, on average.
        tokenizer, delimiter, chat, batch_size: as for `adapt`.

    Raises:
        LasertriError: the input cannot be used, or no gradient reaches a layer, or one is not finite.
        ValueError: of peft, such as that no module has a name of `target_modules`.
            Either way the model is then as it was.
    """
    own_config = _own_config(config, "lora_ga", "LoraGAConfig")
    asked = Settings(delimiter=delimiter, chat=chat, batch_size=batch_size)
    encoded = _encoded(model, samples, tokenizer, asked)
    tokens = _tokens(model, encoded, [*_layers(model, config, "LoRA-GA", vectors=2)])
    adapted = get_peft_model(model, config)  # without a gradient peft starts adapters that add nothing
    for target in list(tokens):
        layer: Any = model.get_submodule(target.module)
        own = tokens.pop(target)
        gradient = weight_gradient(torch.cat(own.deltas), torch.cat(own.inputs)) / len(encoded)
        layer.get_base_layer()._peft_loraga_grad = transpose(gradient, layer.fan_in_fan_out)
        layer.lora_ga_init("default", own_config)
    return adapted


@torch.no_grad()
def corda(
    model: PreTrainedModel,
    config: LoraConfig,
    samples: SampleSource | Iterable[Any],
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    delimiter: str = " ",
    chat: bool = False,
    memory_budget: int | None = None,
) -> PeftModel:
    """Give a model adapters that start with what its weights say most, or least, on some samples (CorDA, 2406.05223).

    What peft's `preprocess_corda` and `get_peft_model` do, without every layer's covariance and full SVD at once: the
    second moments C of as many layers as the budget holds are made in one pass of the samples, each with its right
    answer, and of a layer's W (C + λ) only the components asked for. λ is 1 % of C's mean eigenvalue, as in peft; in
    FP64 that is always enough.

    Args:
        model: which gets the adapters, in place, and weights without what these add: it still gives what it gave.
        config: with `init_lora_weights="corda"` and a `corda_config`, whose `corda_method` says which components:
            "ipm" the leading, "kpm" the trailing ones. Its files are not used, and must not be named.
        samples, tokenizer, delimiter, chat: as for `adapt`.
        memory_budget: bytes of the second moments that are there at once, by default 4 GiB, or half of what a GPU has
            free. Where they take more, the samples are run once for every part of them.

    Raises:
        LasertriError: the input cannot be used, or a layer is given nothing but zeros or what is not finite.
        ValueError: of peft, such as that no module has a name of `target_modules`.
            Either way the model is then as it was.
    """
    leading = _corda_method(config) == "ipm"
    _require_alpha(min([config.lora_alpha, *(config.alpha_pattern or {}).values()]))
    # one by one, so that nothing is padding, and each sample has its own largest value
    asked = Settings(delimiter=delimiter, chat=chat, batch_size=1, memory_budget=memory_budget)
    encoded = _encoded(model, samples, tokenizer, asked)
    layers = _layers(model, config, "CorDA")
    for target in layers:
        weight = target.parameter(model)
        _require_dtype(weight, "CorDA")
        if not all_finite(weight):
            raise LasertriError(f"expected finite weights, got NaN or Inf in {target}; check the checkpoint")
    batches = encoded.gold_batches()
    moments = InputMoments(model, [*layers], batches, normalised=True)
    moments.budget = budget_for(model, asked.memory_budget)
    sides = {}
    for target, rank in layers.items():
        moment = moments.of(target) / len(batches)
        if not all_finite(moment) or not moment.any():
            raise LasertriError(
                f"expected finite inputs, some above 0, for {target} in every sample, got others; leave it out of the "
                "config"
            )
        factors = corda_factors(target.view(target.parameter(model)), moment, rank, leading=leading)
        sides[target] = [side.float() for side in factors]
    plain = _plain(config)
    adapted = get_peft_model(model, plain)
    plain.init_lora_weights = config.init_lora_weights  # by which peft knows what to save
    for target, (left, right) in sides.items():
        _split(model.get_submodule(target.module), "default", left, right)
    return adapted


def _encoded(
    model: PreTrainedModel,
    samples: SampleSource | Iterable[Any],
    tokenizer: PreTrainedTokenizerBase | None,
    asked: Settings,
) -> EncodedSamples:
    """The samples as `adapt` asks them."""
    tokenizer = tokenizer_of(model, tokenizer)
    require_editable(model)  # before peft looks at it, which takes adapters out of a model that has some
    return EncodedSamples(
        as_samples(samples),
        model=model,
        tokenizer=tokenizer,
        delimiter=asked.delimiter,
        chat=asked.chat,
        batch_size=asked.batch_size,
    )


def _corda_method(config: LoraConfig) -> str:
    """The method that a config for `corda` asks for, once it is known for one."""
    own = _own_config(config, "corda", "CordaConfig")
    if own.corda_method not in ("ipm", "kpm"):
        raise LasertriError(f"expected a corda_method among ['ipm', 'kpm'], got {shown(own.corda_method)}")
    if own.cache_file is not None or own.covariance_file is not None:
        raise LasertriError(
            "expected a CordaConfig without cache_file and covariance_file, which are neither read nor written here; "
            "leave them out, or use peft's preprocess_corda"
        )
    return str(own.corda_method)


def _own_config(config: LoraConfig, start: str, kind: str) -> Any:
    """What a config says of a start alone, once it is known to ask for that."""
    if not isinstance(config, LoraConfig):
        raise LasertriError(f"expected a LoraConfig of peft, got {shown(config)}")
    own = getattr(config, f"{start}_config")
    if str(config.init_lora_weights) != start or own is None:
        raise LasertriError(
            f"expected a LoraConfig with init_lora_weights='{start}' and {start}_config={kind}(), got "
            f"init_lora_weights={shown(config.init_lora_weights)}; give both"
        )
    return own


def _require_dtype(weight: Tensor, start: str) -> None:
    if weight.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise LasertriError(f"expected a weight in float32, float16 or bfloat16 for {start}, got {weight.dtype}")


def _require_alpha(least: float) -> None:
    if not least > 0:
        raise LasertriError(f"expected a lora_alpha above 0, got {shown(least)}; factors are divided by its root")


def _split(layer: Any, adapter_name: str, left: Tensor, right: Tensor) -> None:
    """Put the product of factors `[m, r]` and `[r, n]` into a layer's adapter, and leave the rest in its weight."""
    weight, scaling = layer.get_base_layer().weight, layer.scaling[adapter_name]
    # in the weight's dtype, which peft rounds them to: what they lack then stays in the weight
    left, right = ((side / scaling**0.5).to(weight.dtype) for side in (left, right))
    for own, side in ((layer.lora_A[adapter_name].weight, right), (layer.lora_B[adapter_name].weight, left)):
        own.data = side.to(own.dtype).contiguous()
    residual = transpose(weight.data, layer.fan_in_fan_out).float() - scaling * left.float() @ right.float()
    weight.data = transpose(residual, layer.fan_in_fan_out).to(weight.dtype).contiguous()


def _plain(config: LoraConfig) -> LoraConfig:
    """The same with adapters that add nothing; of experts peft has no others."""
    plain = copy.copy(config)
    plain.init_lora_weights = True
    return plain


def _layers(model: PreTrainedModel, config: LoraConfig, start: str, *, vectors: int = 1) -> dict[Target, int]:
    """Those that will have an adapter, and its rank, for every one of which their matrices have so many vectors."""
    if config.layer_replication:  # which peft does not undo
        raise LasertriError(
            f"expected no layer_replication for {start}, got {shown(config.layer_replication)}; leave it out"
        )
    with preserved(model):
        adapted = get_peft_model(model, _plain(config), low_cpu_mem_usage=True)  # whose adapters have no values
        layers = {path: layer for path, layer in model.named_modules() if isinstance(layer, LoraLayer)}
        adapted.unload()
    known = {target.module: target for target in find_linear_layers(model, ".") if target.expert is None}
    for path, layer in layers.items():
        if path not in known:
            raise LasertriError(
                f"expected linear layers that share no weight, and not the head, for {start}, got {path}; leave it out"
            )
        shape, rank = known[path].shape, layer.r["default"]
        if vectors * rank > min(shape):
            raise LasertriError(
                f"expected r of at most {min(shape) // vectors} for {path} {list(shape)}, got r={rank}; lower it, or "
                "give this layer its own in rank_pattern"
            )
    return {known[path]: layer.r["default"] for path, layer in layers.items()}


def _tokens(model: PreTrainedModel, samples: EncodedSamples, targets: list[Target]) -> dict[Target, Tokens]:
    """What every layer was given and asked to change, which its gradient is made of."""
    batches = samples.gold_batches()
    room = Room.within(budget_for(model), model, targets, sum(batch.size for batch in batches), folds=1)
    with preserved(model):
        tokens = gather_tokens(model, targets, batches, room)
    missing = [target for target in targets if target not in tokens]
    if missing:
        raise LasertriError(
            f"expected a gradient for every layer, got none for {missing[0]}; leave it out of the config"
        )
    return tokens
