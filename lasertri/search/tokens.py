"""What every linear layer and expert was given and asked to change, token by token, from one backward pass.

A layer's inputs X `[T, n]` and the gradients at its outputs Δ `[T, m]` hold its weight's gradient G = ΔᵀX and the
second moments of both, without a matrix of the weight's size. An expert is a layer whose tokens are those sent to it.
"""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lasertri.errors import LasertriError, NonFiniteGradientError, NotConvergedError
from lasertri.measure.protocol import Advance, SampleBatch
from lasertri.model.calls import Call, led
from lasertri.model.quantised import differentiable
from lasertri.model.targets import Target
from lasertri.ops import compress_tokens
from lasertri.ops.finite import all_finite
from lasertri.support.memory import as_memory_allows
from lasertri.support.sharing import exchanged, processes, together

logger = logging.getLogger(__name__)

FEWEST_TOKENS = 64  # below, little of a gradient would be left
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
    """The tokens of every target, from one forward and backward pass of the batches.

    The model must be frozen and in evaluation mode, as inside `preserved(model)`. No weight gets a gradient.

    Args:
        advance: is told after every batch how large it was.

    Raises:
        LasertriError: a gradient is NaN or Inf (its layer is named), or no gradient reached a layer.
    """
    tokens: dict[Target, Tokens] = {target: Tokens() for target in targets}

    def taken(batch: SampleBatch) -> dict[Target, tuple[Tensor, Tensor]]:
        return _narrowed(batch_tokens(model, targets, batch), room)

    for batch, found in as_memory_allows(batches, taken):
        for target, (inputs, deltas) in found.items():
            if target not in tokens:
                continue
            tokens[target].inputs.append(inputs)
            tokens[target].deltas.append(deltas)
            if len(tokens[target]) > 2 * room.of(target):
                try:
                    tokens[target].compress(room.of(target))
                except NotConvergedError as error:
                    logger.warning("%s is left out: %s", target, error)
                    del tokens[target]
        advance(batch.size)
    reached = {target: own for target, own in tokens.items() if own.deltas}
    called = {target.name for target in reached}  # an expert may have no token, but not all of them
    missing = [str(target) for target in tokens if target.name not in called]
    if not reached and any(target.expert is None for target in targets):
        raise LasertriError(
            f"expected a gradient for every layer, none reached {missing[0]}; it is offloaded, or not used by the "
            "forward pass, or the loss is detached from it; name other layers with targets="
        )
    if missing:
        logger.warning("%d layers that no gradient reached are left out, %s among them", len(missing), missing[0])
    return reached


def dealt(
    folds: Sequence[dict[Target, Tokens]], targets: Sequence[Target], device: torch.device
) -> list[dict[Target, Tokens]]:
    """Of tokens that every process has of its samples those of all samples, of the layers that are this one's."""
    if processes() == 1:
        return list(folds)
    owner = {target: (target.layer if target.layer >= 0 else i) % processes() for i, target in enumerate(targets)}
    parcels = [
        [_moved({target: own for target, own in fold.items() if owner[target] == process}, "cpu") for fold in folds]
        for process in range(processes())
    ]
    mine: list[dict[Target, Tokens]] = [{} for _ in folds]
    for sent in exchanged(parcels):
        for fold, theirs in zip(mine, sent, strict=True):
            for target, own in theirs.items():
                fold[target] = fold.get(target, Tokens()) + own
    return together(lambda: [_moved(fold, device) for fold in mine])


def _moved(tokens: Mapping[Target, Tokens], device: str | torch.device) -> dict[Target, Tokens]:
    """The same on another device; what layers share stays one tensor."""
    moved: dict[int, Tensor] = {}

    def move(pieces: Sequence[Tensor]) -> list[Tensor]:
        return [moved.setdefault(id(piece), piece.to(device)) for piece in pieces]

    return {target: Tokens(move(own.inputs), move(own.deltas)) for target, own in tokens.items()}


def _narrowed(taken: Mapping[Target, Taken], room: Room) -> dict[Target, tuple[Tensor, Tensor]]:
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
