"""Layers of a model replaced by factored ones: which blocks of rows pay, their factors, and the exchange."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

from lasertri.errors import LasertriError
from lasertri.factored.layer import Block, FactoredLinear, Linear
from lasertri.ops.pairs import balanced, pivoted
from lasertri.support.parameters import parameter_uses


def numbers(rank: int, rows: int, columns: int, *, pivot: bool = False) -> int:
    """How many numbers factors of this rank have, k (b + n), and pivoted k² fewer."""
    return rank * (rows + columns - (rank if pivot else 0))


def pays(rank: int, rows: int, columns: int, *, pivot: bool = False) -> bool:
    """Whether factors of this rank have fewer numbers than the block they stand for: pivoted all but of its own."""
    return numbers(rank, rows, columns, pivot=pivot) < rows * columns


def factored(
    linear: Linear,
    pairs: Iterable[tuple[Tensor, Tensor]],
    whole: Tensor,
    order: Tensor | None = None,
    *,
    pivot: bool = False,
) -> FactoredLinear | None:
    """A layer in place of `linear`, decided block by block; None where no block pays.

    Args:
        pairs: factors of every block, `[b, k]` and `[k, n]`, the columns of one and the rows of the other orthogonal.
        whole: `[m, n]`, whose rows a block has that does not pay.
        order: rows of the weight in the order of the blocks' rows; None for consecutive blocks.
        pivot: keep some of a block's own rows for one of the factors: smaller, and rounded less well.
    """
    blocks: list[Block] = []
    start = 0
    for left, right in pairs:
        (height, rank), columns = left.shape, right.shape[1]
        rows = slice(start, start + height)
        if pays(rank, height, columns, pivot=pivot):
            blocks.append(Block(*(pivoted if pivot else balanced)(left, right)))
        else:
            blocks.append(Block(None, whole[rows if order is None else order[rows].to(whole.device)]))
        start += height
    if all(block.left is None for block in blocks):
        return None
    return FactoredLinear.build(linear, blocks, order)


def linear_at(model: nn.Module, path: str) -> Linear:
    """The linear layer at a path, once it is known that nothing else uses it or its weight.

    Raises:
        LasertriError: there is none, or it is shared.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    linear = modules.get(path)
    if not isinstance(linear, Linear):
        got = "none" if linear is None else f"a {type(linear).__name__}"
        raise LasertriError(f"expected a model with a linear layer {path}, got {got}; take the model it was found in")
    uses = parameter_uses(model)
    if uses[id(linear.weight)] > 1 or sum(module is linear for module in modules.values()) > 1:
        raise LasertriError(
            f"expected {path} to have a weight of its own, but it is shared; leave it out of the targets"
        )
    return linear


def exchange(model: nn.Module, layers: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Put layers at their paths; returns those that were there."""
    before = {path: model.get_submodule(path) for path in layers}
    for path, layer in layers.items():
        model.set_submodule(path, layer)
    return before


@contextmanager
def exchanged(model: nn.Module, layers: Mapping[str, nn.Module]) -> Iterator[None]:
    """Within, these layers stand at their paths."""
    before = exchange(model, layers)
    try:
        yield
    finally:
        exchange(model, before)
