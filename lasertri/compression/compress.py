"""Many weight matrices as factors of lower rank, their ranks chosen together for one budget of bytes."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lasertri.compression.moments import InputMoments
from lasertri.compression.ranks import Priced, cheapest_ranks
from lasertri.compression.result import CompressedMatrix, Compression
from lasertri.compression.sensitivity import output_sensitivity
from lasertri.data.neutral import neutral_text
from lasertri.errors import LasertriError, NotConvergedError
from lasertri.factored.exchange import exchange, exchanged, factored, linear_at, numbers, pays
from lasertri.factored.layer import FactoredLinear
from lasertri.factored.mapped import mapped, require_writable
from lasertri.factors.budget import budget_for
from lasertri.factors.cache import FactorCache
from lasertri.factors.journals import open_journal
from lasertri.factors.store import FactorStore
from lasertri.language.text import EncodedText
from lasertri.measure.side_effects import side_effects
from lasertri.model.identity import identity
from lasertri.model.targets import Target, find_targets
from lasertri.ops import BlockFactors, Partition
from lasertri.ops.arguments import is_number
from lasertri.ops.blocks import retained_rank
from lasertri.ops.finite import all_finite
from lasertri.ops.pairs import truncated_factors
from lasertri.ops.reference import gradient_floor
from lasertri.support.journal import Journal
from lasertri.support.memory import give_back_freed, memory_told
from lasertri.support.paths import check_path
from lasertri.support.shown import shown

logger = logging.getLogger(__name__)

FACTORS = ("whitened", "plain")
KEEP = 0.9


def check_options(keep: float | None, rank: float | None, factors: str, max_kl: float | None) -> None:
    """Raise a `LasertriError` where an option of `compress` cannot be used."""
    if keep is not None and rank is not None:
        raise LasertriError("expected either keep or rank, got both")
    for name, share in (("keep", keep), ("rank", rank)):
        if share is not None and not (is_number(share) and 0 <= share <= 1):
            raise LasertriError(f"expected {name} as a share from 0 to 1, got {shown(share)}")
    if factors not in FACTORS:
        raise LasertriError(f"expected factors among {list(FACTORS)}, got {shown(factors)}")
    if max_kl is not None and not (is_number(max_kl) and max_kl >= 0):
        raise LasertriError(f"expected max_kl of at least 0, got {shown(max_kl)}")


@memory_told()
def compress(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    keep: float | None = None,
    rank: float | None = None,
    factors: str = "whitened",
    text: str | None = None,
    max_kl: float | None = None,
    targets: str | None = None,
    blocks: int = 1,
    memory_budget: int | None = None,
    progress: bool = True,
    journal: str | Path | None = None,
    resume: bool = True,
    scratch: str | Path | None = None,
) -> Compression:
    """Replace weight matrices of a model, in place, by factors of lower rank. `lasertri.save` writes it.

    Whitened factors lose the least of each layer's outputs on a text, and one budget over all matrices is spent where
    a byte saves most of what the text's loss would rise by. A factored block of b rows keeps k of them, and what makes
    the others of these: k (b + n − k) numbers. Every fourth part of the text is left out; what becomes of its
    predictions is measured. Blocks of which nothing can be saved stay as they are, as do experts, the parts of matrices
    stored as one, and layers that the text does not reach or that no solver converges on. The exchange is made when all
    is computed: until then the model, and after a failure, is as it was.

    Args:
        tokenizer: the model's; without one nothing is measured, and the factors can only be plain.
        keep: share of the bytes of the targets to keep, 0.9 by default.
        rank: or rank `int(min(b, n) * rank)` of every block.
        factors: "whitened" by the second moments of each layer's inputs, or "plain", which look at no text.
        text: what the model is run on, 1,000 tokens or more; by default the neutral text that comes with the package.
        max_kl: refuse to change the model where its predictions on the text would move by a larger mean KL, in nats.
        targets: regular expression for module paths; by default the MLP matrices of every layer.
        blocks: number K of row blocks.
        memory_budget: bytes for the FP64 workspace of one matrix, second moments, and factors not yet used; by default
            4 GiB, or half of what a GPU has free.
        journal: folder in which whitened factors are kept, as large as the targets in FP32: called again after it was
            killed, with the same model, text, targets and blocks, it goes on there. `Compression.journal.delete()` is
            for when the model is saved.
        resume: where False, it begins anew.
        scratch: folder on whose disk the new layers of a model on the CPU lie, mapped into memory, while they live; by
            default they are in memory.

    Raises:
        LasertriError: an option cannot be used, a weight is not finite, the budget is too small, the text too short, or
            the predictions move by more than `max_kl`.
    """
    check_options(keep, rank, factors, max_kl)
    if scratch is not None:
        check_path("a folder for new layers", scratch)
        require_writable(Path(scratch))
    if not isinstance(model, nn.Module):
        raise LasertriError(f"expected a model of transformers, got {shown(model)}; load it by load_model")
    if not isinstance(tokenizer, PreTrainedTokenizerBase | None):
        raise LasertriError(f"expected a tokenizer of transformers, got {shown(tokenizer)}; load it by load_tokenizer")
    if not isinstance(text, str | None):
        raise LasertriError(f"expected a text as str, got {shown(text)}")
    if tokenizer is None and (factors == "whitened" or max_kl is not None):
        raise LasertriError(
            "expected a tokenizer to run text with, got none; pass one, or factors='plain' and no max_kl"
        )
    chosen = find_targets(model, targets)
    for target in chosen:
        Partition.consecutive(target.shape[0], blocks)
        if not all_finite(target.parameter(model)):
            raise LasertriError(f"expected finite weights, got NaN or Inf in {target}; check the checkpoint")
    encoded = None
    if tokenizer is not None:
        encoded = EncodedText(neutral_text() if text is None else text, model=model, tokenizer=tokenizer)
    layers = [target for target in chosen if target.is_layer(model)]
    cache, whitened = FactorCache.default(), factors == "whitened"
    about = functools.partial(_content, model, encoded, layers, blocks)
    with open_journal(journal if whitened else None, about, cache, resume=resume) as kept:
        moments, worth = None, None
        if encoded is not None and whitened:
            worth = _worth(model, layers, encoded, kept)
            layers = [target for target in layers if worth[target] > 0]
            moments = InputMoments(model, layers, encoded.calibration)
        inputs, records = None if moments is None else moments.of, kept.under("factors")
        budget = budget_for(model, memory_budget)
        store = FactorStore(model, layers, [blocks], budget=budget, cache=cache, inputs=inputs, journal=records)
        if moments is not None:
            moments.budget = store.budget.free // 2  # the other half is for factors
            store.budget.take(moments.budget)
        with tqdm(total=2 * len(layers), desc="compress", disable=not progress) as bar:
            priced: dict[Target, list[Priced]] = {}
            for target in layers:
                width = target.parameter(model).element_size()
                try:
                    own = store.of(target, blocks)
                except NotConvergedError as error:
                    logger.warning("%s stays as it is: %s", target, error)
                else:
                    priced[target] = _priced(own, width, None if worth is None else worth[target])
                give_back_freed()
                bar.update()
            layers = list(priced)
            ranks = _ranks(priced, KEEP if keep is None else keep, rank)
            made: dict[str, FactoredLinear] = {}
            found: dict[Target, CompressedMatrix] = {}
            for i, target in enumerate(layers):
                layer, found[target] = _compressed(model, target, store.of(target, blocks), ranks[target])
                if layer is not None:
                    made[target.module] = layer if scratch is None else mapped(layer, Path(scratch))
                store.retain((later, blocks, None) for later in layers[i + 1 :])
                give_back_freed()
                bar.update()
        measured = None
        if encoded is not None:
            before = encoded.read(model)
            with exchanged(model, made):
                measured = side_effects(before, encoded.read(model))
            measured.require(max_kl)
    size = _size(model)
    exchange(model, made)
    matrices = [found[target] if target in found else _left(target, model, blocks) for target in chosen]
    parameters, nbytes = zip(size, _size(model), strict=True)
    return Compression(factors, matrices, parameters, nbytes, measured, kept)


def room_for_layers(model: PreTrainedModel, *, keep: float | None, rank: float | None, targets: str | None) -> int:
    """Bytes that the new layers of a model take at most where `compress` has them in `scratch`."""
    share = 1.0 if rank is not None else KEEP if keep is None else keep
    chosen = find_targets(model, targets, warn=False)  # `compress` does
    weights = [target.parameter(model) for target in chosen if target.is_layer(model)]
    return int(share * sum(weight.nbytes for weight in weights if weight.device.type == "cpu"))


def _content(model: nn.Module, text: EncodedText | None, layers: Sequence[Target], blocks: int) -> list[object]:
    """All that whitened factors depend on, of whatever rank they will be."""
    batches = [] if text is None else [*text.calibration, *text.graded]
    return [identity(model), [batch.input_ids.tolist() for batch in batches], [str(t) for t in layers], blocks]


def _worth(model: nn.Module, layers: Sequence[Target], text: EncodedText, journal: Journal) -> dict[Target, float]:
    """See `output_sensitivity`."""

    def make() -> list[Tensor]:
        return [torch.tensor([*output_sensitivity(model, layers, text.graded).values()], dtype=torch.float64)]

    [worth] = journal.of("sensitivity", make)
    return dict(zip(layers, worth.tolist(), strict=True))


def _priced(factors: BlockFactors, width: int, worth: float | None) -> list[Priced]:
    """Every block of a matrix of numbers this wide: errors of its outputs by what they cost, or relative to it."""
    resolved = factors.sigma > gradient_floor(factors.sigma, factors.sigma.shape[-1])  # the rest is rounding
    squares = factors.sigma.square() * resolved
    if worth is None:
        worth = 1 / max(float(squares.sum()), torch.finfo(torch.float64).tiny)
    found = []
    for each, height, length in zip(worth * squares, factors.partition.heights, factors.lengths, strict=True):
        left = each[:length].flip(0).cumsum(0).flip(0).tolist()
        costs = [width * numbers(k, height, factors.columns, pivot=True) for k in range(length + 1)]
        found.append(Priced([*left, 0.0], costs))
    return found


def _ranks(priced: Mapping[Target, Sequence[Priced]], keep: float, rank: float | None) -> dict[Target, list[int]]:
    """The rank of every block: what a share of the bytes buys, or where that is given a share of its full rank."""
    if rank is not None:
        return {t: [retained_rank(len(block.errors) - 1, rank) for block in own] for t, own in priced.items()}
    together = [block for own in priced.values() for block in own]
    ranks = iter(cheapest_ranks(together, int(keep * sum(block.costs[-1] for block in together))))
    return {target: [next(ranks) for _ in own] for target, own in priced.items()}


def _compressed(
    model: PreTrainedModel, target: Target, factors: BlockFactors, ranks: Sequence[int]
) -> tuple[FactoredLinear | None, CompressedMatrix]:
    """A target's new layer, if any of its blocks is to be factored."""
    weight, heights = target.view(target.parameter(model)), factors.partition.heights
    layer = None
    if any(pays(rank, height, factors.columns, pivot=True) for rank, height in zip(ranks, heights, strict=True)):
        pairs = truncated_factors(weight, factors, ranks)
        layer = factored(linear_at(model, target.module), pairs, weight, pivot=True)
    if layer is None:
        return None, _left(target, model, len(ranks))
    outputs = None
    if factors.whitened:
        squares = factors.sigma.square()
        gone = [each[rank:].sum() for each, rank in zip(squares, layer.layout.ranks, strict=True) if rank is not None]
        outputs = float(squares.sum()), float(sum(gone))
    whole = float(weight.double().square().sum())
    lost = float((weight.double() - layer.product(torch.float64)).square().sum())
    after = layer.weight.numel() + sum(left.numel() for left in layer.left)
    return layer, CompressedMatrix(target, layer.layout.ranks, (weight.numel(), after), (whole, lost), outputs)


def _left(target: Target, model: PreTrainedModel, blocks: int) -> CompressedMatrix:
    """A target that stays as it was."""
    weight = target.view(target.parameter(model))
    return CompressedMatrix(
        target, (None,) * blocks, (weight.numel(),) * 2, (float(weight.double().square().sum()), 0.0)
    )


def _size(model: PreTrainedModel) -> tuple[int, int]:
    """Parameters and their bytes."""
    parameters = list(model.parameters())
    return sum(p.numel() for p in parameters), sum(p.nbytes for p in parameters)
