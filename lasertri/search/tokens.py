"""What every linear layer was given and asked to change, token by token, from one backward pass.

A layer's inputs X `[T, n]` and the gradients at its outputs Δ `[T, m]` hold its weight's gradient G = ΔᵀX and the
second moments of both, without a matrix of the weight's size.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lasertri.errors import LasertriError
from lasertri.measure.protocol import Advance, SampleBatch
from lasertri.model.forwards import hidden_of
from lasertri.model.targets import Target
from lasertri.ops import compress_tokens

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


@dataclass(frozen=True)
class Room:
    """How tokens are kept within a memory budget.

    Attributes:
        most: tokens of every layer; beyond twice that they are compressed.
        narrow: whether FP32 ones are kept in BF16, of whose rounding a gradient of hundreds of tokens knows little.
    """

    most: int
    narrow: bool = False

    @classmethod
    def within(cls, budget: int, model: nn.Module, targets: Sequence[Target], tokens: int, folds: int) -> Room:
        """As they are if that many tokens of every fold fit, else in BF16, else as many as fit while compressed."""
        numbers = folds * sum(sum(target.shape) for target in targets)
        dtype = targets[0].parameter(model).dtype
        width = 4 if dtype == torch.float16 else dtype.itemsize  # an fp16 model's output gradients are kept in FP32
        for narrow in (False, True) if dtype == torch.float32 else (False,):
            fitting = budget // (numbers * (2 if narrow else width))
            if tokens <= fitting:
                return cls(fitting, narrow)
        return cls(max(FEWEST_TOKENS, fitting // 2), narrow)  # before they are compressed twice as many are there


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
        advance: is told after every batch how many there were.

    Raises:
        LasertriError: a gradient is NaN or Inf (its layer is named), or no gradient reached a layer.
    """
    tokens: dict[Target, Tokens] = {target: Tokens() for target in targets}
    for batch in batches:
        taken = batch_tokens(model, targets, batch)
        narrowed: dict[int, Tensor] = {}  # once for layers that share it
        for target, (inputs, deltas) in taken.items():
            if room.narrow and inputs.dtype == deltas.dtype == torch.float32:
                if id(inputs) not in narrowed:
                    narrowed[id(inputs)] = inputs.bfloat16()
                inputs, deltas = narrowed[id(inputs)], deltas.bfloat16()
            tokens[target].inputs.append(inputs)
            tokens[target].deltas.append(deltas)
            if len(tokens[target]) > 2 * room.most:
                tokens[target].compress(room.most)
        advance(1)
    reached = {target: own for target, own in tokens.items() if own.deltas}
    missing = [target.module for target in targets if target not in reached]
    if not reached:
        raise LasertriError(
            f"expected a gradient for every layer, none reached {missing[0]}; it is offloaded, or not used by the "
            "forward pass, or the loss is detached from it; name other layers with targets="
        )
    if missing:
        logger.warning("%d layers that no gradient reached are left out, %s among them", len(missing), missing[0])
    return reached


def batch_tokens(
    model: nn.Module, targets: Sequence[Target], batch: SampleBatch
) -> dict[Target, tuple[Tensor, Tensor]]:
    """Inputs and output gradients of every layer that one batch's loss depends on, without the tokens it does not.

    The model must be frozen and in evaluation mode; of an FP16 one the loss is scaled as far up as it goes.

    Raises:
        LasertriError: a gradient is NaN or Inf.
    """
    half = any(target.parameter(model).dtype == torch.float16 for target in targets)
    overflown: list[str] = []
    for scale in FP16_LOSS_SCALES if half else (1.0,):
        taken = _taken(model, targets, batch, scale)
        overflown = [target.module for target, (_, deltas) in taken.items() if not deltas.isfinite().all()]
        if not overflown:
            return taken
    raise LasertriError(
        f"the gradient at the output of {overflown[0]} has NaN or Inf; check the model on one sample, or load it in "
        "float32"
    )


def _taken(
    model: nn.Module, targets: Sequence[Target], batch: SampleBatch, scale: float
) -> dict[Target, tuple[Tensor, Tensor]]:
    """See `batch_tokens`."""
    taken: dict[Target, tuple[Tensor, Tensor]] = {}
    kept: list[tuple[Tensor, Tensor, Tensor]] = []  # inputs, which tokens, those of them

    def consume(target: Target, inputs: Tensor, delta: Tensor) -> None:
        inputs, delta = inputs.reshape(-1, inputs.shape[-1]), delta.reshape(-1, delta.shape[-1])
        used = delta.any(dim=-1)  # not so of padding, nor of what nothing after the layer reads
        rows = next((r for x, u, r in kept if _same(x, inputs) and torch.equal(u, used)), None)
        if rows is None:
            rows = inputs[used]
            kept.append((inputs, used, rows))
        delta = delta[used]
        if delta.dtype == torch.float16:  # which cannot hold them as small as they are
            delta = delta.float() / scale
        if target in taken:  # a layer that runs several times
            rows, delta = torch.cat([taken[target][0], rows]), torch.cat([taken[target][1], delta])
        taken[target] = rows, delta

    with _watched(model, targets, consume), torch.enable_grad():
        loss = batch.loss(model)
        if loss.requires_grad:
            (scale * loss).backward()
    return taken


@contextmanager
def _watched(model: nn.Module, targets: Sequence[Target], consume: Any) -> Iterator[None]:
    """Within, a forward and backward pass hands every target's inputs and output gradients to `consume`."""

    def begin(_: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        # the weights are frozen: the graph starts at the first of these layers
        hidden = hidden_of(arguments, options)
        if hidden.requires_grad:
            return arguments, options
        start = hidden.detach().requires_grad_()
        return (start, *arguments[1:]) if arguments else (), options if arguments else {next(iter(options)): start}

    def watch(target: Target) -> Any:
        def hook(_: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any], output: Tensor) -> None:
            inputs = hidden_of(arguments, options).detach()
            if output.requires_grad:
                output.register_hook(lambda delta: consume(target, inputs, delta.detach()))

        return hook

    with ExitStack() as stack:
        for target in targets:
            module = model.get_submodule(target.module)
            stack.callback(module.register_forward_pre_hook(begin, with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(watch(target), with_kwargs=True).remove)
        yield


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether both are the same view of the same memory."""
    return (one.data_ptr(), one.shape, one.stride()) == (other.data_ptr(), other.shape, other.stride())
