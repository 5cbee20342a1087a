"""Sizes are chosen by samples that took no part in making the step; to first order a step does what its size says."""

import contextlib
import dataclasses
import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stepping import encoded, gathered
from tiny import make_model, make_samples
from torch import nn

from lasertri import LasertriError, Objective, Sample
from lasertri.edit.shrink import Shrink
from lasertri.factors.store import FactorStore
from lasertri.measure.objective import ObjectiveSamples
from lasertri.measure.significance import MOST_RELIEF
from lasertri.model.preserve import preserved
from lasertri.model.targets import find_linear_layers
from lasertri.ops import score_blocks
from lasertri.search.cross_fit import LARGEST, SMALLEST, CrossFit, folds
from lasertri.search.directions import make_step
from lasertri.search.settings import Settings
from lasertri.search.tokens import Room, gather_tokens

# folds


@settings(max_examples=60, deadline=None)
@given(
    groups=st.lists(st.integers(0, 12), min_size=5, max_size=60),
    count=st.integers(2, 5),
    seed=st.integers(0, 99),
)
def test_folds_keep_groups_together_and_differ_by_the_largest_at_most(groups, count, seed):
    names = list(map(str, groups))
    if len(set(names)) < count:
        with pytest.raises(LasertriError, match=f"at least {count} groups, one for every fold, got {len(set(names))}"):
            folds(names, names, count=count, seed=seed)
        return
    parts = folds([str(group % 2) for group in groups], names, count=count, seed=seed)
    assert sorted(index for part in parts for index in part) == list(range(len(groups)))
    assert all(part == sorted(part) for part in parts)
    assert sum(len({names[i] for i in part}) for part in parts) == len(set(names))
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= max(Counter(names).values())


@pytest.mark.parametrize("count", [2, 3, 5])
def test_right_answers_are_spread_over_folds(count):
    rng = np.random.default_rng(3)
    strata = list(rng.choice(["a", "b", "c"], 90, p=[0.6, 0.3, 0.1]))
    parts = folds(strata, list(map(str, range(90))), count=count, seed=1)
    for answer, total in Counter(strata).items():
        assert all(abs(sum(strata[i] == answer for i in part) - total / count) <= 1.5 for part in parts)
    assert parts == folds(strata, list(map(str, range(90))), count=count, seed=1)
    assert parts != folds(strata, list(map(str, range(90))), count=count, seed=2)


# sizes


@dataclasses.dataclass(frozen=True)
class Known:
    """An edit whose loss is known by its size."""

    size: float = 1.0

    def scaled(self, factor):
        return Known(factor * self.size)

    @contextlib.contextmanager
    def beside(self, model):
        model.size = self.size
        yield
        model.size = 0.0

    def to_dict(self):
        return {"kind": "step", "direction": "known", "rank": None, "size": self.size}


def fits_of(loss, first, **options):
    """Of 20 samples whose loss and score depend on the size alone."""
    model = nn.Module()
    model.size = 0.0
    objective = Objective(
        lambda model, batch: model.size,
        lambda size, batch: torch.tensor([loss(size)] * len(batch), dtype=torch.float64),
        lambda size, batch: torch.tensor([0.5] * len(batch)),
    )
    samples = ObjectiveSamples(list(range(20)), objective=objective)
    parts = folds(samples.strata, samples.groups)
    cross = CrossFit(model, samples, parts, samples.read(model), Settings(progress=False))
    fits = list(cross.sizes([Known(), Known()], first, **options))
    assert model.size == 0.0
    return fits


@settings(max_examples=40, deadline=None)
@given(best=st.floats(-8, 6), first=st.sampled_from([0.25, 0.5, 1.0, 2.0]))
def test_sizes_are_tried_until_the_loss_has_turned_on_both_sides(best, first):
    """The loss is lowest at 2^best, which may lie beyond what is tried."""
    fits = fits_of(lambda size: abs(math.log2(size) - best) if size else 10.0, first)
    sizes = [fit.candidate.size for fit in fits]
    assert sizes[0] == first
    assert len(set(sizes)) == len(sizes)
    assert all(SMALLEST <= size <= LARGEST for size in sizes)
    assert all(math.log2(size / first).is_integer() for size in sizes)
    winner = min(fits, key=lambda fit: fit.loss).candidate.size
    assert min(sizes) < winner or winner / 2 < SMALLEST
    assert max(sizes) > winner or winner * 2 > LARGEST
    grid = [size for size in (first * 2.0**i for i in range(-12, 12)) if SMALLEST <= size <= LARGEST]
    assert abs(math.log2(winner) - best) <= min(abs(math.log2(size) - best) for size in grid) + 1e-9


@pytest.mark.parametrize(
    ("loss", "sizes"),
    [
        (lambda size: -size, [2.0**i for i in range(-1, 9)]),  # ever lower: to the largest
        (lambda size: size, [0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625]),  # ever higher: to the smallest
        (lambda size: 1.0, [0.5, 0.25]),  # flat: turned at once
        (lambda size: (size - 0.2) ** 2, [0.5, 0.25, 0.125]),  # 0.5 is no better than 0: what is beyond is left out
    ],
)
def test_a_loss_that_never_turns_ends_at_the_bounds(loss, sizes):
    assert [fit.candidate.size for fit in fits_of(loss, 0.5)] == sizes


@pytest.mark.parametrize(("least", "sizes"), [(0.1, [0.5]), (0.8, [0.5]), (0.82, [0.5, 1, 2])])
def test_what_does_not_beat_its_rival_is_left_at_the_first_size(least, sizes):
    assert [fit.candidate.size for fit in fits_of(lambda size: (size - 1.4) ** 2, 0.5, least=least)] == sizes


@pytest.mark.parametrize("ruin", [math.nan, math.inf])
def test_sizes_that_ruin_the_model_are_left_behind(ruin):
    fits = fits_of(lambda size: ruin if size > 0.2 else (size - 0.06) ** 2 + 1, 1.0)
    assert [fit.candidate.size for fit in fits] == [1, 0.5, 0.25, 0.125, 0.0625, 0.03125]
    assert min(fits, key=lambda fit: fit.loss).candidate.size == 0.0625
    assert [fit.loss for fit in fits][:3] == [math.inf] * 3
    assert (fits[0].relief <= -MOST_RELIEF).all()
    assert (fits_of(lambda size: ruin if size else 1.0, 1.0)[-1].relief <= -MOST_RELIEF).all()


def test_relief_is_what_each_sample_is_spared_and_gain_what_it_scores_more():
    """Of a real model, beside figures read the plain way."""
    model = make_model("gptj")
    samples = encoded(model, "gptj", 24)
    with preserved(model), torch.no_grad():
        parts = folds(samples.strata, samples.groups)
        baseline = samples.read(model)
        cross = CrossFit(model, samples, parts, baseline, Settings(progress=False))
        steps = [whole_step(model, samples, parts[1 - fold]) for fold in (0, 1)]
        fit = cross.measure(steps, 0.5)
        for step, part in zip(steps, parts, strict=True):
            with step.scaled(0.5).beside(model):
                alone = samples.read(model, part)
            losses = alone.sample_losses(part)
            np.testing.assert_allclose(fit.relief[part], baseline.sample_losses(part) - losses, atol=1e-6)
            right, was = alone.outcomes(part)[0], baseline.outcomes(part)[0]
            np.testing.assert_array_equal(fit.gain[part], right.astype(float) - was)
        assert fit.loss == pytest.approx(float((baseline.sample_losses() - fit.relief).mean()))
        assert fit.candidate.to_dict() == {"kind": "step", "direction": "whitened", "rank": 64, "size": 0.5}
        assert cross.others(1) == (parts[0], pytest.approx(float(baseline.sample_losses()[parts[0]].mean())))
        assert fit.to_dict()["loss"] == fit.loss


def whole_step(model, samples, chosen, direction="whitened", rank=64):
    """Of size 1, from these samples."""
    with preserved(model), torch.enable_grad():
        tokens = gather_tokens(model, find_linear_layers(model), samples.loss_batches(chosen), Room(1 << 20))
    with torch.no_grad():
        loss = float(samples.read(model).sample_losses()[chosen].mean())
    return make_step(tokens, direction, rank=rank, loss=loss, samples=len(chosen))


def test_a_folds_edit_does_not_depend_on_that_folds_samples():
    """Another right answer in fold 0 changes the step that is made from it, not the one it is measured under."""
    model = make_model("gptj")
    originals = [dataclasses.replace(sample, group=str(i)) for i, sample in enumerate(make_samples(24))]
    parts = folds(["same"] * 24, [sample.group for sample in originals])
    changed = list(originals)
    one = parts[0][3]
    changed[one] = dataclasses.replace(originals[one], label=1 - originals[one].label)
    fits, steps = [], []
    for samples in (encoded(model, "gptj", originals), encoded(model, "gptj", changed)):
        with preserved(model), torch.no_grad():
            cross = CrossFit(model, samples, parts, samples.read(model), Settings(progress=False))
            steps.append([whole_step(model, samples, cross.others(fold)[0]) for fold in (0, 1)])
            fits.append(list(cross.sizes(steps[-1], 0.25)))
    for fold in (0, 1):
        same = all(
            torch.equal(a, b)
            for mine, theirs in zip(*(made[fold].factors.values() for made in steps), strict=True)
            for a, b in zip(mine, theirs, strict=True)
        )
        assert same == (fold == 0)  # the step that fold 0 is measured under is of the others
    others = [i for i in parts[0] if i != one]
    np.testing.assert_array_equal(fits[0][0].relief[others], fits[1][0].relief[others])
    assert fits[0][0].relief[one] != fits[1][0].relief[one]
    assert (fits[0][0].relief[parts[1]] != fits[1][0].relief[parts[1]]).any()


# what a size says


@pytest.mark.parametrize("architecture", ["gptj", "llama", "roberta", "t5"])
@pytest.mark.parametrize("direction", ["plain", "whitened"])
@pytest.mark.parametrize("completions", [False, True])
def test_a_small_step_takes_its_share_of_the_loss_away(architecture, direction, completions):
    model = make_model(architecture).double()
    samples = make_samples(16)
    if completions:
        samples = [Sample(sample.prompt, sample.answers[sample.gold] + " a") for sample in samples]
    if completions and architecture == "roberta":
        samples = [Sample(sample.prompt, sample.completion[0:1]) for sample in samples]
    chosen = encoded(model, architecture, samples)
    step = whole_step(model, chosen, list(range(16)), direction, rank=3)
    with torch.no_grad():
        before, size = mean_loss(model, chosen), 1e-3
        with step.scaled(size).beside(model):
            after = mean_loss(model, chosen)
    assert before - after == pytest.approx(size * before, rel=0.05)


def mean_loss(model, samples):
    """In FP64, of the batches that the gradient is of."""
    return sum(float(batch.loss(model)) for batch in samples.loss_batches(range(len(samples)))) / len(samples)


@pytest.mark.parametrize("architecture", ["gptj", "gpt2", "t5"])
@pytest.mark.parametrize("blocks", [1, 3])
def test_a_small_shrink_takes_its_share_of_the_loss_away(architecture, blocks):
    model = make_model(architecture)
    samples, targets = encoded(model, architecture), find_linear_layers(model)
    store = FactorStore(model, targets, [blocks], budget=1 << 30)
    tokens, slopes = gathered(model, samples), {}
    for target, own in tokens.items():
        gradient = torch.cat(own.deltas).mT @ torch.cat(own.inputs) / len(samples)
        scores = score_blocks(target.view(target.parameter(model)), gradient, blocks=blocks)
        slopes[target] = scores.sigma * scores.grad
    with torch.no_grad():
        before, size = mean_loss(model, samples), 0.01
        length = before / sum(float(slope.square().sum()) for slope in slopes.values())
        shrink = Shrink(1.0, {target: (-length * slope).float() for target, slope in slopes.items()}, store)
        with shrink.scaled(size).beside(model):
            after = mean_loss(model, samples)
    assert before - after == pytest.approx(size * before, rel=0.1)


def test_no_gradient_makes_no_step():
    model = make_model("gptj")
    samples = encoded(model, "gptj")
    tokens = gathered(model, samples)
    for own in tokens.values():
        own.deltas = [0 * piece for piece in own.deltas]
    step = make_step(tokens, "plain", rank=4, loss=1.0, samples=12)
    assert all(not (left @ right).any() for left, right in step.factors.values())
