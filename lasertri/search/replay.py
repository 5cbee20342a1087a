"""A model run from a target on: what ran before it is recorded once, and replayed for every copy of the rows.

No architecture needs code of its own: every module that finishes before the target starts is made to return what it
returned, so that an ordinary `model(...)` call does only the work that the target can change.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from lasertri.language.encoding import Batch
from lasertri.model.architectures import MLP_ROLES, last_mlp_path, layer_paths
from lasertri.model.forwards import Forward, forwards, fused_activations
from lasertri.model.targets import Target


@dataclass(frozen=True)
class Plan:
    """What a trial of one target need not run again.

    Attributes:
        module: path of the target's module.
        replayed: path of every outermost module that finishes before it starts, and of the one whose output it
            returns: its own, but for the layers before the target's that of the last of them. Embeddings are looked up
            again: those of relative positions, `[T, T, heads]`, have no rows, though their shape may look so.
        calls: how often the target's module runs in one forward pass.
        pointwise: nothing after the target mixes positions, so that only those that are read need to run.
        last_mlp: path of the MLP of the last layer, where it comes after the target: it needs only the positions that
            are read; empty where there is none that is a module of its own.
        fused: of the activations that still run, see `fused_activations`.
    """

    module: str
    replayed: dict[str, str]
    calls: int
    pointwise: bool
    last_mlp: str
    fused: dict[str, Forward]


@dataclass
class Recording:
    """What one batch's forward pass left: outputs by module, call by call, and the targets' inputs."""

    rows: int
    width: int
    outputs: dict[str, list[Any]] = field(default_factory=dict)
    inputs: dict[str, Tensor | None] = field(default_factory=dict)


def plan_replays(model: nn.Module, batch: Batch, targets: Sequence[Target]) -> tuple[dict[Target, Plan], int]:
    """Watch one forward pass: a plan for every target, and the bytes of a layer's activations for one token."""
    clock, spans, sizes = itertools.count(), dict[str, list[tuple[int, int]]](), dict[str, int]()

    def watch(name: str, forward: Forward, /, *arguments: Any, **options: Any) -> Any:
        start = next(clock)
        output = forward(*arguments, **options)
        spans.setdefault(name, []).append((start, next(clock)))
        layer = next((layer for layer in layers if f"{name}.".startswith(f"{layer}.")), "")
        held = sum(t.nbytes for t in tree_leaves(output) if isinstance(t, Tensor))
        sizes[layer] = sizes.get(layer, 0) + held
        return output

    layers = layer_paths(model)
    with forwards(model, {name: functools.partial(watch, name) for name, _ in model.named_modules() if name}):
        batch.read(model)
    last = -1 if batch.decoder_input_ids is not None else len(layers) - 1  # decoders' rows are read almost everywhere
    mlp = "" if last < 0 else last_mlp_path(model)
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding):
            spans.pop(name, None)
    fused = fused_activations(model)
    plans = {target: _plan(target, spans, layers, last, mlp, fused) for target in targets}
    return plans, max(sizes.values()) // batch.size


def _plan(
    target: Target,
    spans: Mapping[str, list[tuple[int, int]]],
    layers: Sequence[str],
    last: int,
    mlp: str,
    fused: Mapping[str, Forward],
) -> Plan:
    calls = spans.get(target.module, [])
    start = calls[0][0] if calls else 0
    done = {name for name, times in spans.items() if times[-1][1] < start}
    outermost = sorted(
        (name for name in done if not any(parent in done for parent in _parents(name))), key=lambda n: spans[n][-1]
    )
    earlier = [name for name in outermost if name in layers]
    replayed = {name: earlier[-1] if name in earlier else name for name in outermost}
    pointwise = 0 <= target.layer == last and target.role in MLP_ROLES  # no position sees another from there on
    later = mlp in spans and spans[mlp][0][0] > start
    running = {name: forward for name, forward in fused.items() if name not in done}
    return Plan(target.module, replayed, len(calls), pointwise, mlp if later else "", running)


def _parents(name: str) -> Iterator[str]:
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


@contextmanager
def recorded(model: nn.Module, batch: Batch, plans: Sequence[Plan]) -> Iterator[Recording]:
    """Within, a forward pass of the batch records what these plans replay, and their targets' inputs and outputs."""
    recording, targets = Recording(*batch.input_ids.shape), {plan.module for plan in plans}

    def record(name: str, forward: Forward, /, *arguments: Any, **options: Any) -> Any:
        if name in targets:
            recording.inputs[name] = arguments[0] if arguments else None
        output = forward(*arguments, **options)
        # what is a target's own may be added to in place, as Falcon does
        kept = output.clone() if name in targets and isinstance(output, Tensor) else output
        recording.outputs.setdefault(name, []).append(kept)
        return output

    sources = {source for plan in plans for source in plan.replayed.values()} | targets
    with forwards(model, {name: functools.partial(record, name) for name in sources}):
        yield recording


class Replay:
    """Copies of a recorded batch that differ in the output of one target.

    Args:
        copies: how many; the rows of one copy follow those of another.

    Attributes:
        input, output: of the target's module, once, on the positions that are run: what a copy's output is made of.
    """

    def __init__(self, batch: Batch, recording: Recording, plan: Plan, copies: int) -> None:
        self._recording, self._plan, self._copies = recording, plan, copies
        self._places = None
        if plan.pointwise:
            *self._places, _ = batch.places
            batch = batch.at_places()
        self._batch = batch.copies(copies)
        self.input = self._narrowed(recording.inputs[plan.module])
        self.output = self._narrowed(recording.outputs[plan.module][0])

    def read(self, model: nn.Module, outputs: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """`Batch.read`, copy by copy, `[copies, N]` each, with these outputs `[copies, …]` of the target's module.

        Without outputs the module runs, with its weight as it is.
        """
        tiled: dict[str, list[Any]] = {}

        def replayed(source: str) -> Forward:
            if source not in tiled:
                tiled[source] = [tree_map(self._tiled, output) for output in self._recording.outputs[source]]
            calls = iter(tiled[source])
            return lambda *_, **__: next(calls)

        others = self._plan.fused | {name: replayed(source) for name, source in self._plan.replayed.items()}
        if outputs is not None:
            others[self._plan.module] = lambda *_, **__: outputs.flatten(0, 1)
        if self._plan.last_mlp:
            others[self._plan.last_mlp] = self._where_read
        with forwards(model, others):
            log_probs, greedy = self._batch.read(model)
        return log_probs.unflatten(0, (self._copies, -1)), greedy.unflatten(0, (self._copies, -1))

    def _where_read(self, forward: Forward, /, hidden: Tensor) -> Tensor:
        """An MLP at the positions that are read, and zeros at the others, which nothing looks at."""
        row, position, _ = (place.to(hidden.device) for place in self._batch.places)
        output = torch.zeros_like(hidden)
        output[row, position] = forward(hidden[row, position].unsqueeze(1)).squeeze(1)
        return output

    def _narrowed(self, value: Any) -> Any:
        """The positions that are run of what has positions, in rows or flat."""
        if self._places is None or not isinstance(value, Tensor):
            return value
        row, position = (place.to(value.device) for place in self._places)
        rows, width = self._recording.rows, self._recording.width
        if value.dim() >= 2 and value.shape[0] in (1, rows) and value.shape[1] == width:
            return value.expand(rows, *value.shape[1:])[row, position].unsqueeze(1)
        if value.dim() >= 1 and value.shape[0] == rows * width:
            return value.unflatten(0, (rows, width))[row, position]
        return value

    def _tiled(self, value: Any) -> Any:
        """As many copies as there are of what has rows, in memory of their own: experts take rows apart by `view`."""
        value, rows = self._narrowed(value), len(self._batch.input_ids) // self._copies
        if not isinstance(value, Tensor) or not value.dim() or value.shape[0] % rows:
            return value
        return value.repeat(self._copies, *[1] * (value.dim() - 1))
