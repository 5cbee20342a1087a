"""A model run from a target on: what ran before it is recorded once, and replayed for every copy of the rows.

No architecture needs code of its own: every module that finishes before the target starts is made to return what it
returned, so that an ordinary `model(...)` call does only the work that the target can change. A `Trace` sees what runs
when; it tells a target's `Shortcut`, what need not run again; a `Recording` holds what that gave for one batch; and a
`Replay` runs copies of the batch on it.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from lasertri.language.encoding import Batch
from lasertri.model.architectures import MLP_ROLES, last_mlp_path, layer_paths
from lasertri.model.forwards import Forward, forwards, fused_activations
from lasertri.model.targets import Target


@dataclass(frozen=True)
class Shortcut:
    """What a trial of one target need not run again.

    Attributes:
        module: path of the target's module.
        replayed: path of every outermost module that finishes before it starts, and of the one whose output it
            returns: its own, but for the layers before the target's that of the last of them. Embeddings are looked up
            again: those of relative positions, `[T, T, heads]`, have no rows, though their shape may look so.
        calls: how often the target's module runs in one forward pass.
        pointwise: nothing after the target mixes positions, so that only those that are read need to run.
        last_mlp: path of the MLP of the last layer, where it is a module of its own and runs after the target: it needs
            only the positions that are read.
        fused: of the activations that still run, see `fused_activations`.
    """

    module: str
    replayed: dict[str, str]
    calls: int
    pointwise: bool
    last_mlp: str | None
    fused: dict[str, Forward]


@dataclass(frozen=True)
class Trace:
    """What ran when in one forward pass.

    Attributes:
        spans: by path, for every module but embeddings, when each of its calls started and ended, on a clock that
            every start and every end advances.
        layers: paths of the layers, in order.
        last_layer: the number of the last; None for an encoder-decoder, whose decoder is read at almost all positions.
        last_mlp: path of its MLP, if that is a module of its own.
        fused: see `fused_activations`.
        token_bytes: size of a layer's activations for one token.
    """

    spans: dict[str, list[tuple[int, int]]]
    layers: list[str]
    last_layer: int | None
    last_mlp: str | None
    fused: dict[str, Forward]
    token_bytes: int

    @classmethod
    def of(cls, model: nn.Module, batch: Batch) -> Trace:
        """Watch the model read a batch."""
        clock, layers = itertools.count(), layer_paths(model)
        spans: dict[str, list[tuple[int, int]]] = {}
        sizes: dict[str | None, int] = {}  # by layer, None for what is in none

        def watch(name: str, forward: Forward, /, *arguments: Any, **options: Any) -> Any:
            start = next(clock)
            output = forward(*arguments, **options)
            spans.setdefault(name, []).append((start, next(clock)))
            layer = next((layer for layer in layers if f"{name}.".startswith(f"{layer}.")), None)
            held = sum(t.nbytes for t in tree_leaves(output) if isinstance(t, Tensor))
            sizes[layer] = sizes.get(layer, 0) + held
            return output

        _read(model, batch, {name: functools.partial(watch, name) for name, _ in model.named_modules() if name})
        for name, module in model.named_modules():
            if isinstance(module, nn.Embedding):
                spans.pop(name, None)
        narrow = bool(layers) and batch.decoder_input_ids is None
        return cls(
            spans,
            layers,
            last_layer=len(layers) - 1 if narrow else None,
            last_mlp=(last_mlp_path(model) or None) if narrow else None,
            fused=fused_activations(model),
            token_bytes=max(sizes.values()) // batch.size,
        )

    def shortcut(self, target: Target) -> Shortcut:
        """What need not run again for this target."""
        calls = self.spans.get(target.module, [])
        start = calls[0][0] if calls else 0
        done = {name for name, times in self.spans.items() if times[-1][1] < start}
        outermost = sorted(
            (name for name in done if not any(parent in done for parent in _parents(name))),
            key=lambda name: self.spans[name][-1],
        )
        earlier = [name for name in outermost if name in self.layers]
        mlp_calls = [] if self.last_mlp is None else self.spans.get(self.last_mlp, [])
        return Shortcut(
            target.module,
            replayed={name: earlier[-1] if name in earlier else name for name in outermost},
            calls=len(calls),
            # no position sees another from the last layer's MLP on
            pointwise=self.last_layer is not None and target.layer == self.last_layer and target.role in MLP_ROLES,
            last_mlp=self.last_mlp if mlp_calls and mlp_calls[0][0] > start else None,
            fused={name: forward for name, forward in self.fused.items() if name not in done},
        )


@dataclass(frozen=True)
class Recording:
    """What one batch's forward pass left.

    Attributes:
        read: what `Batch.read` gave.
        outputs: by module, call by call.
        inputs: of the targets' modules; None where it was not the first positional argument.
    """

    batch: Batch
    read: tuple[Tensor, Tensor]
    outputs: Mapping[str, list[Any]]
    inputs: Mapping[str, Tensor | None]


def record(model: nn.Module, batch: Batch, shortcuts: Iterable[Shortcut]) -> Recording:
    """Read a batch, and keep what these shortcuts replay and their targets' inputs and outputs."""
    outputs: dict[str, list[Any]] = {}
    inputs: dict[str, Tensor | None] = {}
    targets, sources = set[str](), set[str]()
    for shortcut in shortcuts:
        targets.add(shortcut.module)
        sources |= {shortcut.module, *shortcut.replayed.values()}

    def keep(name: str, forward: Forward, /, *arguments: Any, **options: Any) -> Any:
        if name in targets:
            inputs[name] = arguments[0] if arguments else None
        output = forward(*arguments, **options)
        # what is a target's own may be added to in place, as Falcon does
        kept = output.clone() if name in targets and isinstance(output, Tensor) else output
        outputs.setdefault(name, []).append(kept)
        return output

    read = _read(model, batch, {name: functools.partial(keep, name) for name in sources})
    return Recording(batch, read, outputs, inputs)


class RecordedBatch:
    """A batch that is recorded when that is first asked for, with the model as it then is.

    Attributes:
        entries: see `Batch.entry`.
    """

    def __init__(self, model: nn.Module, batch: Batch, shortcuts: Iterable[Shortcut]) -> None:
        self.batch, self.entries = batch, batch.entry.tolist()
        self._model, self._shortcuts = model, list(shortcuts)

    @functools.cached_property
    def recording(self) -> Recording:
        return record(self._model, self.batch, self._shortcuts)

    def read(self) -> tuple[Tensor, Tensor]:
        """What `Batch.read` gave."""
        return self.recording.read

    def replay(self, shortcut: Shortcut, copies: int) -> Replay:
        return Replay(self.recording, shortcut, copies)


class Replay:
    """Copies of a recorded batch that differ in the output of one target.

    Modules return what they like, and nothing says which axis of a tensor is rows or positions: that is told by its
    shape (`_narrowed`, `_tiled`). A guess may be wrong where sizes happen to agree; whoever replays a model must first
    see that a replay gives the model's own answers, as `Projected` does for every target before the first trial.

    Args:
        copies: how many; the rows of one copy follow those of another.

    Attributes:
        input, output: of the target's module, once, on the positions that are run: what a copy's output is made of.
    """

    def __init__(self, recording: Recording, shortcut: Shortcut, copies: int) -> None:
        self._recording, self._shortcut, self._copies = recording, shortcut, copies
        batch = recording.batch
        self._places: tuple[Tensor, Tensor] | None = None  # None: all positions are run
        if shortcut.pointwise:
            self._places = batch.places[:2]
            batch = batch.at_places()
        self._rows, self._batch = len(batch.input_ids), batch.copies(copies)
        self._read_at = self._batch.places[:2]
        self.input = self._narrowed(recording.inputs[shortcut.module])
        self.output = self._narrowed(recording.outputs[shortcut.module][0])

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

        shortcut = self._shortcut
        others = shortcut.fused | {name: replayed(source) for name, source in shortcut.replayed.items()}
        if outputs is not None:
            others[shortcut.module] = lambda *_, **__: outputs.flatten(0, 1)
        if shortcut.last_mlp is not None:
            others[shortcut.last_mlp] = functools.partial(_only_at, *self._read_at)
        log_probs, greedy = _read(model, self._batch, others)
        return log_probs.unflatten(0, (self._copies, -1)), greedy.unflatten(0, (self._copies, -1))

    def _narrowed(self, value: Any) -> Any:
        """The positions that are run of what has positions, as `[rows, positions, …]` or flat; all else as it is."""
        if self._places is None or not isinstance(value, Tensor):
            return value
        row, position = (place.to(value.device) for place in self._places)
        rows, width = self._recording.batch.input_ids.shape
        if value.dim() >= 2 and value.shape[0] in (1, rows) and value.shape[1] == width:
            return value.expand(rows, *value.shape[1:])[row, position].unsqueeze(1)
        if value.dim() >= 1 and value.shape[0] == rows * width:
            return value.unflatten(0, (rows, width))[row, position]
        return value

    def _tiled(self, value: Any) -> Any:
        """As many copies as there are of what has rows first, or rows and positions in one; all else as it is.

        They are in memory of their own: experts take rows apart by `view`.
        """
        value = self._narrowed(value)
        if not isinstance(value, Tensor) or not value.dim() or value.shape[0] % self._rows:
            return value
        return value.repeat(self._copies, *[1] * (value.dim() - 1))


def _read(model: nn.Module, batch: Batch, others: Mapping[str, Forward]) -> tuple[Tensor, Tensor]:
    """What the model gives with these functions in place of its modules' own."""
    with forwards(model, others):
        return batch.read(model)


def _only_at(row: Tensor, position: Tensor, forward: Forward, /, hidden: Tensor) -> Tensor:
    """An MLP at the positions that are read, and zeros at the others, which nothing looks at."""
    row, position = row.to(hidden.device), position.to(hidden.device)
    output = torch.zeros_like(hidden)
    output[row, position] = forward(hidden[row, position].unsqueeze(1)).squeeze(1)
    return output


def _parents(name: str) -> Iterator[str]:
    while "." in name:
        name = name.rpartition(".")[0]
        yield name
