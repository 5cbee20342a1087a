"""How close the log-probabilities of trials are to those of the exact edit, beside a really edited model's."""

import copy

import numpy as np
import torch
from tiny import make_samples

from lasertri import Sample
from lasertri.edit.candidate import Candidate
from lasertri.factors.store import FactorStore
from lasertri.language.samples import EncodedSamples
from lasertri.model.targets import find_targets
from lasertri.ops import reduce_blocks
from lasertri.search.trial import TrialReadings
from lasertri.search.trials import plan_trials

GRID = [(1, 0.5), (1, 0.0), (3, 0.4), (8, 0.9)]  # tall and wide blocks, uneven ones, none at all


def encode(model, tokenizer, samples=None):
    several = [Sample("a b c", choices=("d e f", "g", "h i"), label=2), Sample("b c d e", "f g h")]
    return EncodedSamples(samples or [*make_samples(12), *several], model=model, tokenizer=tokenizer, batch_size=4)


def candidates_of(model, pattern=None):
    return [Candidate(t, k, ratio) for t in find_targets(model, pattern) for k, ratio in GRID if k <= t.shape[0]]


@torch.no_grad()
def trial_log_probs(model, samples, candidates, **changes):
    store = FactorStore(model, {c.target for c in candidates}, [1], budget=1 << 30)
    (projected, linear), (in_place, others) = plan_trials(model, candidates, samples, store)
    vars(projected).update(changes)
    assert in_place.shortcuts.keys() == {c.target for c in candidates}  # all are replayed
    assert others == {i for i, candidate in enumerate(candidates) if candidate.target.expert is not None}
    assert linear == set(range(len(candidates))) - others
    readings = TrialReadings.empty(samples, len(candidates))
    for runner, numbers in ((in_place, sorted(others)), (projected, sorted(linear))):
        if numbers:
            readings.update(numbers, runner.run([candidates[i] for i in numbers], range(len(samples))))
    return readings.edited.log_probs, readings.beside.log_probs, readings.baseline.log_probs


@torch.no_grad()
def model_log_probs(model, samples):
    readings = samples.readings()
    for batch in samples.batches():
        readings.record(batch, *batch.read(model))
    return readings.log_probs


def edited(model, candidate, dtype):
    """The model in this dtype with the exact truncation, made in FP64, in place."""
    changed = copy.deepcopy(model).to(dtype)
    if dtype == torch.float64:
        changed.set_experts_implementation("eager")  # the default's grouped product has no FP64
    weight = candidate.target.view(candidate.target.parameter(model)).double()
    exact = reduce_blocks(weight, ratios=candidate.ratio, blocks=candidate.blocks, backend="reference")
    candidate.target.view(candidate.target.parameter(changed)).copy_(exact)
    return changed


def assert_as_close_as_edits(model, tokenizer, candidates, samples):
    found, beside, baseline = trial_log_probs(model, samples, candidates)
    errors = {"trial": 0.0, "edit": 0.0}
    for got, candidate in zip(found, candidates, strict=True):
        exact = model_log_probs(edited(model, candidate, torch.float64), samples)
        real = model_log_probs(edited(model, candidate, model.dtype), samples)
        errors["trial"] += float(np.square(got - exact).sum())
        errors["edit"] += float(np.square(real - exact).sum())
    assert errors["trial"] ** 0.5 <= 2 * errors["edit"] ** 0.5
    kept = np.broadcast_to(baseline, beside.shape)
    np.testing.assert_allclose(beside, kept, rtol=0, atol=16 * torch.finfo(model.dtype).eps * np.abs(kept).max())
