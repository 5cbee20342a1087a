"""Where model families keep their layers and what is where in one: a table; unknown ones by inspection."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from lasertri.model.quantised import is_linear

MLP_ROLES = ("fc_in", "fc_up", "fc_out")
MIXES = r"att(n|ention)|router|mamba|conv\b|temporal"  # in the path of what mixes positions, or chooses experts


@dataclass(frozen=True)
class Architecture:
    """Where a family keeps its layers, and what is where inside one.

    Roles with one path are rows of one matrix, in this order. Experts are found wherever they are, see `targets.py`.

    Attributes:
        layers: path of their list.
        roles: a regular expression for the module path of every role inside a layer.
        shared: the same for the expert that every token passes, beside those it is routed to.
        decoder: path of a second list, an encoder-decoder's decoder.
        causal: a token sees those before it, at positions from 0.
    """

    layers: str
    roles: dict[str, str]
    shared: dict[str, str] = field(default_factory=dict)
    decoder: str | None = None
    causal: bool = True

    @property
    def lists(self) -> list[str]:
        """Paths of the lists of layers, in the order they run."""
        return [self.layers] if self.decoder is None else [self.layers, self.decoder]


def _attention(prefix: str, out: str) -> dict[str, str]:
    return {f"{x}_proj": f"{prefix}.{x}_proj" for x in "qkv"} | {"out_proj": f"{prefix}.{out}"}


def _fused_attention(fused: str, out: str) -> dict[str, str]:
    return dict.fromkeys(("q_proj", "k_proj", "v_proj"), fused) | {"out_proj": out}


def _gated(prefix: str) -> dict[str, str]:
    return {"fc_in": f"{prefix}.gate_proj", "fc_up": f"{prefix}.up_proj", "fc_out": f"{prefix}.down_proj"}


_LLAMA = Architecture("model.layers", _gated("mlp") | _attention("self_attn", "o_proj"))
_FC12 = {"fc_in": "fc1", "fc_out": "fc2"}
_GPT2_MLP = {"fc_in": "mlp.c_fc", "fc_out": "mlp.c_proj"}

_BERT = {"fc_in": "intermediate.dense", "fc_out": "output.dense", "out_proj": "attention.output.dense"} | {
    f"{x[0]}_proj": f"attention.self.{x}" for x in ("query", "key", "value")
}
_T5_FEED_FORWARD = r"layer\.\d\.DenseReluDense"
_T5 = Architecture(
    "encoder.block",
    {
        "fc_in": rf"{_T5_FEED_FORWARD}\.wi(_0)?",
        "fc_up": rf"{_T5_FEED_FORWARD}\.wi_1",
        "fc_out": rf"{_T5_FEED_FORWARD}\.wo",
        **{f"{x}_proj": rf"layer\.0\.SelfAttention\.{x}" for x in "qkv"},
        "out_proj": r"layer\.0\.SelfAttention\.o",
        **{f"cross_{x}_proj": rf"layer\.1\.EncDecAttention\.{x}" for x in "qkv"},
        "cross_out_proj": r"layer\.1\.EncDecAttention\.o",
    },
    decoder="decoder.block",
    causal=False,
)

ARCHITECTURES: dict[str, Architecture] = {
    "gptj": Architecture(
        "transformer.h", {"fc_in": "mlp.fc_in", "fc_out": "mlp.fc_out"} | _attention("attn", "out_proj")
    ),
    "gpt2": Architecture("transformer.h", _GPT2_MLP | _fused_attention("attn.c_attn", "attn.c_proj")),
    "gpt_neo": Architecture("transformer.h", _GPT2_MLP | _attention("attn.attention", "out_proj")),
    "gpt_neox": Architecture(
        "gpt_neox.layers",
        {
            "fc_in": "mlp.dense_h_to_4h",
            "fc_out": "mlp.dense_4h_to_h",
            "qkv_proj": "attention.query_key_value",
            "out_proj": "attention.dense",
        },
    ),
    "opt": Architecture("model.decoder.layers", _FC12 | _attention("self_attn", "out_proj")),
    "phi": Architecture("model.layers", {"fc_in": "mlp.fc1", "fc_out": "mlp.fc2"} | _attention("self_attn", "dense")),
    "phi3": Architecture(
        "model.layers",
        {"fc_in": "mlp.gate_up_proj", "fc_up": "mlp.gate_up_proj", "fc_out": "mlp.down_proj"}
        | _fused_attention("self_attn.qkv_proj", "self_attn.o_proj"),
    ),
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text"), _LLAMA),
    **dict.fromkeys(("mixtral", "qwen3_moe"), _LLAMA),
    "qwen2_moe": replace(_LLAMA, shared=_gated("mlp.shared_expert")),
    "bert": Architecture("bert.encoder.layer", _BERT, causal=False),
    "electra": Architecture("electra.encoder.layer", _BERT, causal=False),
    **dict.fromkeys(
        ("roberta", "xlm-roberta", "camembert"), Architecture("roberta.encoder.layer", _BERT, causal=False)
    ),
    "bart": Architecture(
        "model.encoder.layers",
        _FC12
        | _attention("self_attn", "out_proj")
        | {f"cross_{k}": v for k, v in _attention("encoder_attn", "out_proj").items()},
        decoder="model.decoder.layers",
        causal=False,
    ),
    **dict.fromkeys(("t5", "mt5"), _T5),
}


def layout(model: nn.Module) -> tuple[list[str], list[tuple[str, str]]]:
    """Paths of the lists of layers; and roles, each with a pattern for its module path inside one."""
    known = ARCHITECTURES.get(model_type(model))
    if known and known.lists[0] in dict(model.named_modules()):  # not so of a model without its head
        return known.lists, [*known.roles.items(), *known.shared.items()]
    lists = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and any(is_linear(inner) for inner in module.modules())
    }
    if not lists:
        return [], []
    name = max(lists, key=lambda n: sum(p.numel() for p in lists[n].parameters()))
    return [name], _guessed_roles(lists[name])


def _guessed_roles(layers: nn.ModuleList) -> list[tuple[str, str]]:
    """By the names that most families have, in whichever layers; else by their places.

    An MLP is what widens and narrows the hidden state outside attention and its like: first in, last out, between up.
    """
    inside = [[path for path, module in layer.named_modules() if is_linear(module)] for layer in layers]
    inside = [[path for path in paths if not re.search(MIXES, path, re.IGNORECASE)] for paths in inside]
    names = {path.rpartition(".")[2] for paths in inside for path in paths}
    if "down_proj" in names:
        first = next((name for name in ("gate_proj", "gate_up_proj") if name in names), "up_proj")
        up = "gate_up_proj" if first == "gate_up_proj" else "up_proj"
        chosen = {"fc_in": first} | ({} if first == up == "up_proj" else {"fc_up": up}) | {"fc_out": "down_proj"}
        return [(role, rf"(?i)(?!.*({MIXES}))(.*\.)?{name}") for role, name in chosen.items()]
    linear = next((paths for paths in inside if len(paths) in (2, 3)), [])
    roles = ("fc_in", "fc_out") if len(linear) == 2 else MLP_ROLES
    return list(zip(roles, map(re.escape, linear), strict=True)) if linear else []


def layer_paths(model: nn.Module) -> list[str]:
    """Path of every layer in the order they run, an encoder's before its decoder's; empty where there are none."""
    return [f"{path}.{name}" for path in layout(model)[0] for name, _ in model.get_submodule(path).named_children()]


def last_mlp_path(model: nn.Module) -> str:
    """Path of the module that is the MLP of the last layer, in the table's architectures; empty where none is."""
    known = ARCHITECTURES.get(model_type(model))
    parents = {path.rpartition(".")[0] for role, path in known.roles.items() if role in MLP_ROLES} if known else {""}
    return f"{layer_paths(model)[-1]}.{parents.pop()}" if len(parents) == 1 and "" not in parents else ""


def branching_length(model: nn.Module) -> int:
    """Most tokens of a row with branches (positions and a mask of its own), 0 where the model cannot run one.

    All causal architectures of the table can, with attention that takes a mask, on rows that fit their windows.
    """
    config: Any = getattr(model, "config", None)
    known = ARCHITECTURES.get(model_type(model))
    if known is None or not known.causal or config._attn_implementation not in ("eager", "sdpa"):
        return 0
    windows = (getattr(config, name, None) for name in ("sliding_window", "window_size", "max_position_embeddings"))
    return min([window for window in windows if window], default=1 << 30)


def output_head(model: nn.Module) -> nn.Module | None:
    """What turns hidden states into logits over the vocabulary, where a model has such."""
    return getattr(model, "get_output_embeddings", lambda: None)()


def model_type(model: nn.Module) -> str:
    """Its family's name in transformers, or its class's."""
    return getattr(getattr(model, "config", None), "model_type", type(model).__name__)
