"""PEFT's starts of an adapter that look at the model: PiSSA and LoRA-GA, by lasertri's ops and its streamed gradient.

LoraLayer.pissa_init = lasertri.integrations.peft.pissa_init  # of peft.tuners.lora.layer
model = lasertri.integrations.peft.lora_ga(model, config, samples)  # in place of preprocess_loraga and get_peft_model
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.layer import LoraLayer
from peft.utils.other import transpose
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lasertri.data.files import SampleSource, as_samples
from lasertri.errors import LasertriError
from lasertri.factors.budget import budget_for
from lasertri.language.samples import EncodedSamples
from lasertri.model.editable import require_editable
from lasertri.model.preserve import preserved
from lasertri.model.targets import Target, find_linear_layers
from lasertri.ops import lowrank_blocks
from lasertri.search.problem import tokenizer_of
from lasertri.search.settings import Settings
from lasertri.search.tokens import Room, Tokens, gather_tokens
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
        LasertriError: a weight that is not in FP32, FP16 or BF16, or whose matrix is smaller than the rank.
    """
    layer = self.get_base_layer()
    weight, rank, scaling = layer.weight, self.r[adapter_name], self.scaling[adapter_name]
    if weight.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise LasertriError(f"expected a weight in float32, float16 or bfloat16 for PiSSA, got {weight.dtype}")
    matrix = transpose(weight.data, self.fan_in_fan_out)
    if rank > min(matrix.shape):
        raise LasertriError(
            f"expected r of at most {min(matrix.shape)} for a matrix {list(matrix.shape)}, got r={rank}; lower it, or "
            "give this layer its own in rank_pattern"
        )
    found = lowrank_blocks(matrix, rank=rank, precision="float32")
    # in the weight's dtype, which peft rounds them to: what they lack then stays in the weight
    left, right = ((side / scaling**0.5).to(weight.dtype) for side in (found.left, found.right[0]))
    self.lora_A[adapter_name].weight.data = right.contiguous()
    self.lora_B[adapter_name].weight.data = left.contiguous()
    residual = matrix.float() - scaling * left.float() @ right.float()
    layer.weight.data = transpose(residual, self.fan_in_fan_out).to(weight.dtype).contiguous()


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
    if not isinstance(config, LoraConfig):
        raise LasertriError(f"expected a LoraConfig of peft, got {shown(config)}")
    if str(config.init_lora_weights) != "lora_ga" or config.lora_ga_config is None:
        raise LasertriError(
            "expected a LoraConfig with init_lora_weights='lora_ga' and lora_ga_config=LoraGAConfig(), got "
            f"init_lora_weights={shown(config.init_lora_weights)}; give both"
        )
    tokenizer = tokenizer_of(model, tokenizer)
    require_editable(model)  # before peft looks at it, which takes adapters out of a model that has some
    asked = Settings(delimiter=delimiter, chat=chat, batch_size=batch_size)
    encoded = EncodedSamples(
        as_samples(samples),
        model=model,
        tokenizer=tokenizer,
        delimiter=asked.delimiter,
        chat=asked.chat,
        batch_size=asked.batch_size,
    )
    tokens = _tokens(model, encoded, _layers(model, config))
    adapted = get_peft_model(model, config)  # without a gradient peft starts adapters that add nothing
    for target in list(tokens):
        layer: Any = model.get_submodule(target.module)
        own = tokens.pop(target)
        gradient = torch.cat(own.deltas).float().mT @ torch.cat(own.inputs).float() / len(encoded)
        layer.get_base_layer()._peft_loraga_grad = transpose(gradient, layer.fan_in_fan_out)
        layer.lora_ga_init("default", config.lora_ga_config)
    return adapted


def _layers(model: PreTrainedModel, config: LoraConfig) -> list[Target]:
    """Those that will have an adapter, once they are known to have room for it."""
    plain = copy.copy(config)
    plain.init_lora_weights = True  # of experts peft has none but this
    with preserved(model):
        adapted = get_peft_model(model, plain, low_cpu_mem_usage=True)  # whose adapters have no values
        layers = {path: layer for path, layer in model.named_modules() if isinstance(layer, LoraLayer)}
        adapted.unload()
    known = {target.module: target for target in find_linear_layers(model, ".") if target.expert is None}
    for path, layer in layers.items():
        if path not in known:
            raise LasertriError(
                f"expected linear layers alone, and not the head, for LoRA-GA, got {path}; leave it out of the config"
            )
        shape, rank = known[path].shape, layer.r["default"]
        if 2 * rank > min(shape):
            raise LasertriError(
                f"expected r of at most {min(shape) // 2} for {path} {list(shape)}, got r={rank}; lower it, or give "
                "this layer its own in rank_pattern"
            )
    return [known[path] for path in layers]


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
