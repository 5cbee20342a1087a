"""What every linear layer and expert was given and asked to change, token by token, from one backward pass.

A layer's inputs X `[T, n]` and the gradients at its outputs Δ `[T, m]` hold its weight's gradient G = ΔᵀX and the
second moments of both, without a matrix of the weight's size. An expert is a layer whose tokens are those sent to it.
"""

from __future__ import annotations

import functools
import logging
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lasertri.errors import LasertriError, NonFiniteGradientError, NotConvergedError
from lasertri.measure.protocol import Advance, SampleBatch
from lasertri.model.calls import Call, led
from lasertri.model.parallel import all_features
from lasertri.model.quantised import differentiable
from lasertri.model.targets import Target
from lasertri.ops import compress_tokens
from lasertri.ops.finite import all_finite
from lasertri.support.memory import as_memory_allows
from lasertri.support.sharing import everyones, exchanged, in_all, number, processes, share, together

logger = logging.getLogger(__name__)

FEWEST_TOKENS = 64  # below, little of a gradient would be left
Sides = dict[Target, tuple[Tensor, Tensor]]  # inputs and deltas
FP16_LOSS_SCALES = (2.0**12, 2.0**6, 1.0)  # gradients of an fp16 model underflow without


@dataclass
class Tokens:
    """The tokens of one layer that some samples ran.

    Attributes:
        inputs: X, in pieces `[t, n]` of the layer's dtype; layers with the same input hold the same pieces.
        deltas: Δ, in pieces `[t, m]`.
    """

    inputs: list[Tensor] = field(default_factory=list)
    deltas: list[Tensor] = field(default_factory=list)

    def __len__(self) -> int:
        return sum(map(len, self.deltas))

    def __add__(self, other: Tokens) -> Tokens:
        return Tokens(self.inputs + other.inputs, self.deltas + other.deltas)

    def shares_inputs(self, other: Tokens) -> bool:
        """Whether both layers were given the same tensors, not just equal ones."""
        return len(self.inputs) == len(other.inputs) and all(
            a is b for a, b in zip(self.inputs, other.inputs, strict=True)
        )

    def compress(self, most: int) -> None:
        """Keep at most so many rows, see `ops.compress_tokens`."""
        if len(self) > most:
            inputs, deltas = compress_tokens(torch.cat(self.inputs), torch.cat(self.deltas), most)
            self.inputs, self.deltas = [inputs], [deltas]


def weight_gradient(deltas: Tensor, inputs: Tensor) -> Tensor:
    """ΔᵀX `[…, m, n]` of tokens, summed in FP32; a GPU multiplies narrower ones at their own speed."""
    if deltas.is_cuda and deltas.dtype == inputs.dtype and deltas.dtype in (torch.bfloat16, torch.float16):
        if deltas.dim() == 2:
            return torch.mm(deltas.mT, inputs, out_dtype=torch.float32)
        product = torch.bmm(deltas.flatten(0, -3).mT, inputs.flatten(0, -3), out_dtype=torch.float32)
        return product.unflatten(0, deltas.shape[:-2])
    return deltas.float().mT @ inputs.float()


class Taken(NamedTuple):
    """The tokens of one layer that one batch's loss depends on.

    Attributes:
        inputs, deltas: `[t, n]` and `[t, m]`.
        first: `[t]`, each token's index along the first axis of what the layer was given.
        axis: the length of that axis.
    """

    inputs: Tensor
    deltas: Tensor
    first: Tensor
    axis: int


@dataclass(frozen=True)
class Room:
    """How tokens are kept within a memory budget.

    Attributes:
        most: rows of every layer that tokens are compressed to, where there are twice as many; None: they stay as they
            are. n + m rows hold all that a layer `[m, n]` is asked for.
        narrow: whether FP32 ones are kept in BF16, of whose rounding a gradient of hundreds of tokens knows little.
        share: of a layer's tokens what an expert may keep.
    """

    most: int | None = None
    narrow: bool = False
    share: float = 1.0

    @classmethod
    def within(cls, budget: int, model: nn.Module, targets: Sequence[Target], tokens: int, folds: int) -> Room:
        """As they are if so many tokens of every fold fit, else in BF16, else as many rows as fit while compressed."""
        share = _share(model, targets)
        dtype = targets[0].dtype(model)
        width = 4 if dtype == torch.float16 else dtype.itemsize  # an fp16 model's output gradients are kept in FP32
        numbers = folds * sum(sum(target.shape) * (1 if target.expert is None else share) for target in targets)
        for narrow in (False, True) if dtype == torch.float32 else (False,):
            if tokens * numbers * (2 if narrow else width) <= budget:
                return cls(None, narrow)
        narrow = dtype == torch.float32

        def held(most: int) -> int:
            """Bytes: before they are compressed there are twice as many."""
            room = cls(most, narrow, share)
            rows = folds * sum(2 * room.of(target) * sum(target.shape) for target in targets)
            return rows * (2 if narrow else width)

        largest = max(sum(target.shape) for target in targets)
        most = bisect_right(range(largest + 1), budget, key=held) - 1
        return cls(max(FEWEST_TOKENS, most), narrow, share)

    def of(self, target: Target) -> int:
        """How many rows this target's tokens are compressed to."""
        if self.most is None:
            return 1 << 60
        most = self.most if target.expert is None else max(FEWEST_TOKENS, int(self.share * self.most))
        return min(most, sum(target.shape))


def gather_tokens(
    model: nn.Module,
    targets: Sequence[Target],
    batches: Sequence[SampleBatch],
    room: Room,
    *,
    advance: Advance = lambda _: None,
) -> dict[Target, Tokens]:
    """The tokens of every target, from one forward and backward pass of the batches: see `gather_parts`."""
    [tokens] = gather_parts(model, targets, [batches], room, advance=advance)
    return tokens


def gather_parts(
    model: nn.Module,
    targets: Sequence[Target],
    parts: Sequence[Sequence[SampleBatch]],
    room: Room,
    *,
    advance: Advance = lambda _: None,
) -> list[dict[Target, Tokens]]:
    """Of every part of the samples, in batches, the tokens of every target, from one forward and backward pass.

    The model must be frozen and in evaluation mode, as inside `preserved(model)`. No weight gets a gradient. Where
    processes share the work, each runs its share of the batches and is given the tokens of its layers, of all batches
    in one order: they are what one process has, and rounded alike.

    Args:
        advance: is told after every batch how large it was.

    Raises:
        LasertriError: a gradient is NaN or Inf (its layer is named), or no gradient reached a layer.
    """
    owner = {target: (target.layer if target.layer >= 0 else i) % processes() for i, target in enumerate(targets)}
    tokens = [{target: Tokens() for target in targets if owner[target] == number()} for _ in parts]
    called = [set[str]() for _ in parts]
    for part, found in _found(model, targets, parts, room, owner, advance):
        called[part] |= {target.name for target in found}
        for target, (inputs, deltas) in found.items():
            own = tokens[part].get(target)
            if own is None:
                continue
            own.inputs.append(inputs)
            own.deltas.append(deltas)
            if len(own) > 2 * room.of(target):
                try:
                    own.compress(room.of(target))
                except NotConvergedError as error:
                    logger.warning("%s is left out: %s", target, error)
                    del tokens[part][target]
    for names in (set[str]().union(*part) for part in zip(*everyones(called), strict=True)):
        missing = [str(target) for target in targets if target.name not in names]  # of experts not all
        if not names and any(target.expert is None for target in targets):
            raise in_all(
                LasertriError(
                    f"expected a gradient for every layer, none reached {missing[0]}; it is offloaded, or not used by "
                    "the forward pass, or the loss is detached from it; name other layers with targets="
                )
            )
        if missing and number() == 0:
            logger.warning("%d layers that no gradient reached are left out, %s among them", len(missing), missing[0])
    return [{target: own for target, own in each.items() if own.deltas} for each in tokens]


def _found(
    model: nn.Module,
    targets: Sequence[Target],
    parts: Sequence[Sequence[SampleBatch]],
    room: Room,
    owner: Mapping[Target, int],
    advance: Advance,
) -> Iterator[tuple[int, Sides]]:
    """Of every batch, with the number of its part, what this process is to have, the smallest first.

    They are run as many at a time as there are processes, so that each holds no others' tokens for long; those of
    about one size take about as long.
    """
    batches = sorted(((i, batch) for i, part in enumerate(parts) for batch in part), key=lambda each: each[1].size)
    device = targets[0].device(model)
    pieces = as_memory_allows(
        [batch for _, batch in share()(batches)], lambda batch: _narrowed(batch_tokens(model, targets, batch), room)
    )

    def run(batches: Sequence[SampleBatch]) -> list[Sides]:
        """In the pieces that memory allows."""
        found, left = list[Sides](), sum(len(batch.entry) for batch in batches)
        while left:
            piece, sides = next(pieces)
            found.append(sides)
            left -= len(piece.entry)
        return found

    for start in range(0, len(batches), share().of):
        at_once = batches[start : start + share().of]
        mine = [batch for _, batch in share()(at_once)]
        found = together(functools.partial(run, mine))
        for (part, batch), theirs in zip(at_once, _dealt(found, owner, device), strict=False):
            yield from ((part, sides) for sides in theirs)
            advance(batch.size)


def _dealt(found: list[Sides], owner: Mapping[Target, int], device: torch.device) -> list[list[Sides]]:
    """What every process has found of the layers that are this one's."""
    if share().of == 1:
        return [found]
    parcels = [
        [_moved({target: own for target, own in sides.items() if owner[target] == process}, "cpu") for sides in found]
        for process in range(processes())
    ]
    received = exchanged(parcels)
    return together(lambda: [[_moved(sides, device) for sides in theirs] for theirs in received])


def _moved(sides: Sides, device: str | torch.device) -> Sides:
    """The same on another device; what layers share stays one tensor."""
    moved: dict[int, Tensor] = {}

    def move(side: Tensor) -> Tensor:
        return moved.setdefault(id(side), side.to(device))

    return {target: (move(inputs), move(deltas)) for target, (inputs, deltas) in sides.items()}


def _narrowed(taken: Mapping[Target, Taken], room: Room) -> Sides:
    """Inputs and deltas in the dtype that they are kept in; those that layers share stay one tensor."""
    narrowed: dict[int, Tensor] = {}
    found = {}
    for target, (inputs, deltas, _, _) in taken.items():
        if room.narrow and inputs.dtype == deltas.dtype == torch.float32:
            if id(inputs) not in narrowed:
                narrowed[id(inputs)] = inputs.bfloat16()
            inputs, deltas = narrowed[id(inputs)], deltas.bfloat16()
        found[target] = inputs, deltas
    return found


def _share(model: nn.Module, targets: Sequence[Target]) -> float:
    """What part of the tokens an expert is sent, if all are sent as many."""
    experts = max((len(target.parameter(model)) for target in targets if target.expert is not None), default=1)
    return (getattr(getattr(model, "config", None), "num_experts_per_tok", None) or experts) / experts


def batch_tokens(model: nn.Module, targets: Sequence[Target], batch: SampleBatch) -> dict[Target, Taken]:
    """The tokens of every layer that one batch's loss depends on.

    The model must be frozen and in evaluation mode; of an FP16 one the loss is scaled as far up as it goes.

    Raises:
        LasertriError: a gradient is NaN or Inf.
    """
    half = any(target.dtype(model) == torch.float16 for target in targets)
    overflown: list[str] = []
    for scale in FP16_LOSS_SCALES if half else (1.0,):
        taken = _taken(model, targets, batch, scale)
        overflown = [str(target) for target, own in taken.items() if not all_finite(own.deltas)]
        if not overflown:
            return taken
    raise non_finite_gradient(f"at the output of {overflown[0]}", targets[0].dtype(model))


def non_finite_gradient(where: str, dtype: torch.dtype) -> NonFiniteGradientError:
    """What is said of a gradient with NaN or Inf in a model of this dtype."""
    if dtype.itemsize < 4:
        advice = f"{dtype} may not hold it: load the model in float32 (--dtype float32)"
    else:
        advice = "a function of the model has none for a sample, such as a root of zero: change it, or leave that out"
    return NonFiniteGradientError(f"expected finite gradients of a finite loss, got NaN or Inf {where}; {advice}")


def _taken(model: nn.Module, targets: Sequence[Target], batch: SampleBatch, scale: float) -> dict[Target, Taken]:
    """See `batch_tokens`."""
    taken: dict[Target, Taken] = {}
    kept: dict[object, list[tuple[Tensor, Tensor, Tensor]]] = {}  # by view: inputs, which tokens, those of them

    def consume(target: Target, inputs: Tensor, delta: Tensor) -> None:
        shards = target.shards(model)
        inputs, delta = all_features(inputs, 1, shards), all_features(delta, 0, shards)
        axis, places = len(delta), delta.shape[:-1].numel()
        inputs, delta = inputs.reshape(-1, inputs.shape[-1]), delta.reshape(-1, delta.shape[-1])
        used = delta.any(dim=-1)  # not so of padding, nor of what nothing after the layer reads
        if target.expert is not None:
            used &= inputs.any(dim=-1)  # nor of other experts' tokens, where each is given all and zeros for those
        alike = kept.setdefault(_view(inputs), [])
        rows = next((r for _, u, r in alike if torch.equal(u, used)), None)
        if rows is None:
            rows = inputs[used]
            alike.append((inputs, used, rows))
        delta, first = delta[used], used.nonzero().squeeze(1) // max(1, places // max(1, axis))
        if delta.dtype == torch.float16:  # which cannot hold them as small as they are
            delta = delta.float() / scale
        if target in taken:  # a layer that runs several times
            before = taken[target]
            rows, delta = torch.cat([before.inputs, rows]), torch.cat([before.deltas, delta])
            first, axis = torch.cat([before.first, first]), axis if axis == before.axis else 0
        taken[target] = Taken(rows, delta, first, axis)

    def watch(target: Target, inputs: Tensor, call: Call) -> Tensor:
        if not inputs.requires_grad:  # the weights are frozen: the graph starts at the first of these layers
            inputs = inputs.detach().requires_grad_()
        output, given = call(inputs), inputs.detach()
        if output.requires_grad:
            output.register_hook(lambda delta: consume(target, given, delta.detach()))
        return output

    with differentiable(model), led(model, targets, watch), torch.enable_grad():
        loss = batch.loss(model)
        if loss.requires_grad:
            (scale * loss).backward()
    return taken


def _view(tensor: Tensor) -> tuple[object, ...]:
    """Equal for the same view of the same memory."""
    return tensor.data_ptr(), tensor.shape, tensor.stride()
