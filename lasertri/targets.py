"""Which weight matrices of a model may be edited: architectures as a table, unknown ones by inspection."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lasertri.errors import LasertriError

MLP_ROLES = ("fc_in", "fc_up", "fc_out")


@dataclass(frozen=True)
class Target:
    """One weight matrix of a model.

    Attributes:
        name: path of its parameter, as in `model.get_parameter(name)`.
        layer: index of the repeated part it stands in, a decoder's after its encoder's; -1 outside of those.
        role: what it does there, such as "fc_in" or "q_proj".
        transposed: stored as [inputs, outputs] (GPT-2's `Conv1D`).
        shape: (rows, columns) = (outputs, inputs), however it is stored.
    """

    name: str
    layer: int
    role: str
    transposed: bool
    shape: tuple[int, int]

    def parameter(self, model: nn.Module) -> nn.Parameter:
        return model.get_parameter(self.name)

    def view(self, stored: Tensor) -> Tensor:
        """The stored weight, or its gradient, with rows = output features; shares memory."""
        return stored.detach().mT if self.transposed else stored.detach()

    def __str__(self) -> str:
        return self.name.removesuffix(".weight")


@dataclass(frozen=True)
class Architecture:
    """Where a family keeps its layers, and what is where inside one.

    Attributes:
        layers: path of their list.
        roles: a regular expression for the module path of every role inside a layer.
        decoder: path of a second list, an encoder-decoder's decoder.
        causal: a token sees those before it, at positions from 0.
    """

    layers: str
    roles: dict[str, str]
    decoder: str | None = None
    causal: bool = True

    @property
    def lists(self) -> list[str]:
        """Paths of the lists of layers, in the order they run."""
        return [self.layers] if self.decoder is None else [self.layers, self.decoder]


def _attention(prefix: str, out: str) -> dict[str, str]:
    return {f"{x}_proj": f"{prefix}.{x}_proj" for x in "qkv"} | {"out_proj": f"{prefix}.{out}"}


_GATED = {"fc_in": "mlp.gate_proj", "fc_up": "mlp.up_proj", "fc_out": "mlp.down_proj"}
_LLAMA = Architecture("model.layers", _GATED | _attention("self_attn", "o_proj"))
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
    "gpt2": Architecture("transformer.h", _GPT2_MLP | {"qkv_proj": "attn.c_attn", "out_proj": "attn.c_proj"}),
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
        {
            "fc_in": "mlp.gate_up_proj",
            "fc_out": "mlp.down_proj",
            "qkv_proj": "self_attn.qkv_proj",
            "out_proj": "self_attn.o_proj",
        },
    ),
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text"), _LLAMA),
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


def find_targets(model: nn.Module, pattern: str | None = None, *, roles: Sequence[str] = MLP_ROLES) -> list[Target]:
    """The weight matrices that may be edited, in layer order.

    Args:
        pattern: regular expression searched for in module paths, to name targets oneself; by default the MLP
            matrices of every layer, as in both papers.
        roles: which of them by default.

    Raises:
        LasertriError: listing what was seen, where nothing fits.
    """
    matrices = dict(_matrices(model))
    if pattern is not None:
        try:
            chosen = [target for name, target in matrices.items() if re.search(pattern, name)]
        except re.error as error:
            raise LasertriError(f"expected a regular expression for the targets, came {pattern!r}: {error}") from error
        wanted = f"a module path that matches {pattern!r}"
    else:
        chosen = [target for target in matrices.values() if target.role in roles]
        wanted = f"MLP matrices in a model of type {_model_type(model)!r}"
    if not chosen:
        seen = Counter((re.sub(r"\d+", "N", name), target.shape) for name, target in matrices.items())
        listing = (
            "; ".join(f"{count} × {name} {list(shape)}" for (name, shape), count in seen.items()) or "no linear layers"
        )
        raise LasertriError(f"expected {wanted}, saw {listing}; name targets with a regular expression (--targets)")
    return sorted(chosen, key=lambda target: target.layer)


def _matrices(model: nn.Module) -> Iterator[tuple[str, Target]]:
    """Every linear layer outside embeddings, heads and shared weights, with layer and role."""
    uses = Counter(id(p) for m in model.modules() for p in m._parameters.values() if p is not None)
    layers, (_, roles) = layer_paths(model), _layout(model)
    head = getattr(model, "get_output_embeddings", lambda: None)()
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear | Conv1D) or module is head or uses[id(module.weight)] > 1:
            continue
        layer = next((i for i, path in enumerate(layers) if name.startswith(f"{path}.")), -1)
        inside = name.removeprefix(f"{layers[layer]}.") if layer >= 0 else name
        role = next((role for role, path in roles.items() if layer >= 0 and re.fullmatch(path, inside)), inside)
        transposed = isinstance(module, Conv1D)
        rows, columns = reversed(module.weight.shape) if transposed else module.weight.shape
        yield name, Target(f"{name}.weight", layer, role, transposed, (rows, columns))


def _layout(model: nn.Module) -> tuple[list[str], dict[str, str]]:
    """Paths of the lists of layers, and a pattern for the module path of every role inside one."""
    known = ARCHITECTURES.get(_model_type(model))
    if known:
        return known.lists, known.roles
    repeated = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len({type(item) for item in module}) == 1
    }
    if not repeated:
        return [], {}
    name = max(repeated, key=lambda n: sum(p.numel() for p in repeated[n].parameters()))
    return [name], _guessed_roles(repeated[name][0])


def _guessed_roles(layer: nn.Module) -> dict[str, str]:
    """An MLP is what widens and narrows the hidden state outside attention: first in, last out, between up."""
    linear = [
        re.escape(path)
        for path, module in layer.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and not re.search(r"att(n|ention)|router", path, re.IGNORECASE)
    ]
    if len(linear) not in (2, 3):
        return {}
    return dict(zip(("fc_in", "fc_out") if len(linear) == 2 else MLP_ROLES, linear, strict=True))


def layer_paths(model: nn.Module) -> list[str]:
    """Path of every layer in the order they run, an encoder's before its decoder's; empty where there are none."""
    return [f"{path}.{name}" for path in _layout(model)[0] for name, _ in model.get_submodule(path).named_children()]


def last_mlp_path(model: nn.Module) -> str:
    """Path of the module that is the MLP of the last layer, in the table's architectures; empty where none is."""
    known = ARCHITECTURES.get(_model_type(model))
    parents = {path.rpartition(".")[0] for role, path in known.roles.items() if role in MLP_ROLES} if known else {""}
    return f"{layer_paths(model)[-1]}.{parents.pop()}" if len(parents) == 1 and "" not in parents else ""


def branching_length(model: nn.Module) -> int:
    """Most tokens of a row with branches (positions and a mask of its own), 0 where the model cannot run one.

    All causal architectures of the table can, with attention that takes a mask, on rows that fit their windows.
    """
    config: Any = getattr(model, "config", None)
    known = ARCHITECTURES.get(_model_type(model))
    if known is None or not known.causal or config._attn_implementation not in ("eager", "sdpa"):
        return 0
    windows = (getattr(config, name, None) for name in ("sliding_window", "window_size", "max_position_embeddings"))
    return min([window for window in windows if window], default=1 << 30)


def _model_type(model: nn.Module) -> str:
    return getattr(getattr(model, "config", None), "model_type", type(model).__name__)
