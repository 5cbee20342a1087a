"""Which weight matrices of a model may be edited: architectures as a table, unknown ones by inspection."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lasertri.editable import require_editable, require_plain
from lasertri.errors import LasertriError

MLP_ROLES = ("fc_in", "fc_up", "fc_out")
BY_TURNS = " (one matrix: its rows are q, k and v by turns, head by head)"  # GPT-NeoX, BLOOM and Falcon


@dataclass(frozen=True)
class Target:
    """One weight matrix of a model: a parameter, or the part of one that acts as a matrix of its own.

    Attributes:
        name: path of its parameter, as in `model.get_parameter(name)`.
        layer: index of the repeated part it stands in, a decoder's after its encoder's; -1 outside of those.
        role: what it does there, such as "fc_in" or "q_proj".
        transposed: stored as [inputs, outputs] (GPT-2's `Conv1D`).
        shape: (rows, columns) = (outputs, inputs), however it is stored.
        expert: index of its matrix in a parameter `[experts, …]`; None where the parameter is one matrix.
        rows: which of the stored matrix's rows are its own, `[start, stop)`; None for all.
    """

    name: str
    layer: int
    role: str
    transposed: bool
    shape: tuple[int, int]
    expert: int | None = None
    rows: tuple[int, int] | None = None

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Target:
        """What `dataclasses.asdict` gave, after a way through JSON, which has no tuples."""
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
        return cls(**values)

    @property
    def module(self) -> str:
        """Path of the module that its parameter belongs to."""
        return self.name.rpartition(".")[0]

    def parameter(self, model: nn.Module) -> nn.Parameter:
        return model.get_parameter(self.name)

    def part(self, stored: Tensor) -> Tensor:
        """Its part of the parameter, or of the parameter's gradient, as it is stored; shares memory."""
        matrix = stored.detach() if self.expert is None else stored.detach()[self.expert]
        if self.rows is None:
            return matrix
        rows = slice(*self.rows)
        return matrix[:, rows] if self.transposed else matrix[rows]

    def view(self, stored: Tensor) -> Tensor:
        """The same with rows = output features; shares memory."""
        return self.part(stored).mT if self.transposed else self.part(stored)

    def __str__(self) -> str:
        """The parameter's path, then expert and role where it is a part: what `--targets` is searched in."""
        expert = "" if self.expert is None else f".{self.expert}"
        return self.name.removesuffix(".weight") + expert + ("" if self.rows is None else f".{self.role}")


@dataclass(frozen=True)
class Architecture:
    """Where a family keeps its layers, and what is where inside one.

    Roles with one path are rows of one matrix, in this order. Experts are found wherever they are, see `_stacks`.

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


def find_targets(model: nn.Module, pattern: str | None = None, *, roles: Sequence[str] = MLP_ROLES) -> list[Target]:
    """The weight matrices that may be edited, in layer order.

    Args:
        pattern: regular expression searched for in `str(target)`, to name targets oneself; by default the MLP
            matrices of every layer, as in both papers.
        roles: which of them by default.

    Raises:
        LasertriError: listing what was seen, where nothing fits; or weights are quantised or not in memory.
    """
    require_editable(model)
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
            "; ".join(
                f"{count} × {name} {list(shape)}{BY_TURNS if name.endswith('query_key_value') else ''}"
                for (name, shape), count in seen.items()
            )
            or "no linear layers"
        )
        raise LasertriError(f"expected {wanted}, saw {listing}; name targets with a regular expression (--targets)")
    for target in chosen:
        require_plain(target.name, target.parameter(model))
    return sorted(chosen, key=lambda target: target.layer)


def _matrices(model: nn.Module) -> Iterator[tuple[str, Target]]:
    """Every matrix outside embeddings, heads, routers and shared weights, by `str(target)`."""
    uses = Counter(id(p) for m in model.modules() for p in m._parameters.values() if p is not None)
    layers, (_, roles) = layer_paths(model), _layout(model)
    head = getattr(model, "get_output_embeddings", lambda: None)()
    for name, module in model.named_modules():
        layer = next((i for i, path in enumerate(layers) if name.startswith(f"{path}.")), -1)
        inside = name.removeprefix(f"{layers[layer]}.") if layer >= 0 else name
        if isinstance(module, nn.Linear | Conv1D) and module is not head and not _chooses_experts(model, name):
            known = tuple(role for role, path in roles if layer >= 0 and re.fullmatch(path, inside))
            stored = {"weight": (known or (inside,), isinstance(module, Conv1D))}
        else:
            stored = _stacks(module)
        for key, (parts, transposed) in stored.items():
            parameter = module._parameters[key]
            if parameter is None or uses[id(parameter)] > 1:
                continue
            shape = parameter.shape[:-3:-1] if transposed else parameter.shape[-2:]
            whole = Target(f"{name}.{key}", layer, parts[0], transposed, tuple(shape))
            for expert in range(len(parameter)) if parameter.dim() == 3 else [None]:
                for target in _parts(replace(whole, expert=expert), parts, _shares(model, parts)):
                    yield str(target), target


def _parts(whole: Target, roles: Sequence[str], shares: Sequence[int]) -> Iterator[Target]:
    """The matrices that are stored as one, their rows one after the other, by each one's share of them."""
    if len(roles) == 1:
        yield whole
        return
    (rows, columns), start = whole.shape, 0
    for role, share in zip(roles, shares, strict=True):
        stop = start + rows * share // sum(shares)
        yield replace(whole, role=role, shape=(stop - start, columns), rows=(start, stop))
        start = stop


def _shares(model: nn.Module, roles: Sequence[str]) -> list[int]:
    """How many rows each of these roles has of a matrix that they share: heads of attention, else alike."""
    config: Any = getattr(model, "config", None)
    if "q_proj" not in roles:
        return [1] * len(roles)
    queries = config.num_attention_heads
    return [queries if role == "q_proj" else getattr(config, "num_key_value_heads", queries) for role in roles]


def _stacks(module: nn.Module) -> dict[str, tuple[tuple[str, ...], bool]]:
    """Roles and orientation of the parameters that hold one matrix for every expert, as Transformers names them.

    `[E, 2I, H]` beside `[E, H, I]`, or transposed `[E, H, 2I]` beside `[E, I, H]`: their shapes tell which. GPT-OSS, in
    which gate and up take turns row by row, is left alone.
    """
    gate_up, down = (module._parameters.get(name) for name in ("gate_up_proj", "down_proj"))
    if gate_up is None or down is None or gate_up.dim() != 3 or not getattr(module, "is_concatenated", True):
        return {}
    experts, first, second = gate_up.shape
    for transposed, expected in ((False, (experts, second, first // 2)), (True, (experts, second // 2, first))):
        if down.shape == expected:
            return {"gate_up_proj": (("fc_in", "fc_up"), transposed), "down_proj": (("fc_out",), transposed)}
    return {}


def _chooses_experts(model: nn.Module, name: str) -> bool:
    """A linear layer right beside experts says which of them a token takes, or how much of one."""
    return "router" in name or hasattr(model.get_submodule(name.rpartition(".")[0]), "experts")


def _layout(model: nn.Module) -> tuple[list[str], list[tuple[str, str]]]:
    """Paths of the lists of layers; and roles, each with a pattern for its module path inside one."""
    known = ARCHITECTURES.get(_model_type(model))
    if known:
        return known.lists, [*known.roles.items(), *known.shared.items()]
    repeated = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len({type(item) for item in module}) == 1
    }
    if not repeated:
        return [], []
    name = max(repeated, key=lambda n: sum(p.numel() for p in repeated[n].parameters()))
    return [name], _guessed_roles(repeated[name][0])


def _guessed_roles(layer: nn.Module) -> list[tuple[str, str]]:
    """An MLP is what widens and narrows the hidden state outside attention: first in, last out, between up."""
    linear = [
        re.escape(path)
        for path, module in layer.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and not re.search(r"att(n|ention)|router", path, re.IGNORECASE)
    ]
    if len(linear) not in (2, 3):
        return []
    return list(zip(("fc_in", "fc_out") if len(linear) == 2 else MLP_ROLES, linear, strict=True))


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
