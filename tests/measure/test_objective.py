"""Any module and any objective: the same figures as a plain calculation, nothing left changed, mistakes named early."""

import copy
import dataclasses
import itertools

import numpy as np
import pytest
import safetensors.torch
import torch
from tiny import make_model
from torch import nn
from torch.nn.functional import cosine_similarity, cross_entropy

from lasertri import Edit, LasertriError, Objective, adapt, reduce_blocks, score_blocks
from lasertri.edit.candidate import Candidate
from lasertri.edit.edit import CONFIG_NAME, FACTORS_NAME
from lasertri.edit.truncation import Truncation
from lasertri.factors.store import FactorStore
from lasertri.measure.evaluate import evaluate
from lasertri.measure.objective import ObjectiveSamples
from lasertri.method import SEARCHES
from lasertri.model.checkpoint import CARD_NAME
from lasertri.model.preserve import preserved
from lasertri.model.targets import find_targets
from lasertri.result.adaptation import REPORT_NAME, SUMMARY_NAME
from lasertri.search.scoring import score_targets
from lasertri.search.settings import Settings
from lasertri.search.trials import run_trials
from lasertri.support.output_folder import FILES_NAME

CLASSES, LENGTH = 3, 7


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(5, 11, batch_first=True)
        self.drop, self.head = nn.Dropout(0.5), nn.Linear(11, CLASSES)

    def forward(self, x):
        return self.head(self.drop(self.lstm(x)[0][:, -1]))


class Convolutional(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv1d(5, 11, 3), nn.BatchNorm1d(11), nn.Linear(11, CLASSES)

    def forward(self, x):
        return self.head(self.norm(self.conv(x.mT)).relu().mean(-1))


class Attending(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(5, 1, batch_first=True), nn.Linear(5, CLASSES)

    def forward(self, x):
        return self.head(self.attention(x, x, x)[0].mean(1))


MODELS = {
    Recurrent: {"lstm.weight_ih_l0": (44, 5), "lstm.weight_hh_l0": (44, 11), "head": (3, 11)},
    Convolutional: {"conv": (11, 15), "head": (3, 11)},
    Attending: {"attention.in_proj_weight": (15, 5), "attention.out_proj": (5, 5), "head": (3, 5)},
}


def make(kind, dtype=torch.float32):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind()
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.6)
    return model.to(dtype)


def draw(count, seed=0):
    """Pairs of a sequence `[LENGTH, 5]` and a class."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, LENGTH, 5, generator=generator)
    return list(zip(x, torch.randint(CLASSES, (count,), generator=generator).tolist(), strict=True))


def stacked(batch, dtype=torch.float32):
    return torch.stack([x for x, _ in batch]).to(dtype), torch.tensor([y for _, y in batch])


def forward(model, batch):
    return model(stacked(batch, next(model.parameters()).dtype)[0])


def loss(logits, batch):
    return cross_entropy(logits, stacked(batch)[1], reduction="none")


def right(logits, batch):
    return logits.argmax(-1) == stacked(batch)[1]


def probability(logits, batch):
    """A score between 0 and 1, as an array."""
    return logits.softmax(-1).gather(1, stacked(batch)[1].unsqueeze(1)).squeeze(1).numpy()


def relabelled(model, pairs, *, best):
    """The same sequences, with the class that a model finds the most probable, or the least."""
    with torch.no_grad():
        logits = forward(model.eval(), pairs)
    answers = logits.argmax(-1) if best else logits.argmin(-1)
    return [(x, answer) for (x, _), answer in zip(pairs, answers.tolist(), strict=True)]


CLASSIFY = Objective(forward, loss, right)
REAL = Objective(forward, loss, probability)
SMALL = {"blocks": (1, 3), "ratios": (0.5, 0.2, 0.0), "targets": ".", "count": 2, "progress": False}


def store_of(model, targets):
    return FactorStore(model, targets, [1, 3], budget=1 << 30)


@pytest.mark.parametrize("kind", MODELS)
def test_matrices_of_any_module_can_be_named(kind):
    assert {str(target): target.shape for target in find_targets(make(kind), ".")} == MODELS[kind]


def test_by_default_only_linear_layers_are_targets_and_what_else_there_is_gets_listed():
    with pytest.raises(LasertriError, match=r"lstm\.weight_ih_lN \[44, 5\].*--targets"):
        find_targets(make(Recurrent))


def test_embeddings_other_stacks_and_shared_matrices_are_left_alone():
    model = nn.ModuleDict({"table": nn.Embedding(5, 4), "pair": nn.Bilinear(3, 3, 2), "a": nn.LSTM(4, 4)})
    model["b"] = nn.LSTM(4, 4)
    model["b"].weight_hh_l0 = model["a"].weight_hh_l0
    names = ["a.weight_ih_l0", "b.weight_ih_l0"]
    assert [str(target) for target in find_targets(model, ".")] == names


def test_weights_made_of_others_are_left_to_them():
    model = nn.Sequential(torch.nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)), nn.Linear(3, 2))
    assert "0" not in {str(target) for target in find_targets(model, ".")}


def test_a_kernels_matrix_gives_the_convolutions_outputs():
    """Columns are inputs by position: the matrix times an unfolded image is the convolution."""
    model, x = nn.Sequential(nn.Conv2d(3, 7, (2, 3), bias=False)), torch.randn(2, 3, 6, 5)
    (target,) = find_targets(model, ".")
    matrix = target.view(target.parameter(model))
    torch.testing.assert_close((matrix @ nn.functional.unfold(x, (2, 3))).unflatten(-1, (5, 3)), model(x))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_kernels_are_written_whatever_their_layout(memory_format):
    model = nn.Sequential(nn.Conv2d(3, 7, 3)).to(memory_format=memory_format)
    (target,) = find_targets(model, ".")
    edit = Truncation.build(Candidate(target, 2, 0.4), model, FactorStore(model, [target], [2], budget=1 << 30))
    before = model[0].weight.detach().clone()
    with edit.applied(model):
        assert torch.equal(model[0].weight.flatten(1), edit.weight)
    assert torch.equal(model[0].weight, before)
    edit.apply(model)
    expected = reduce_blocks(before.flatten(1).double(), ratios=0.4, blocks=2, backend="reference")
    torch.testing.assert_close(model[0].weight.flatten(1).double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", MODELS)
def test_scores_equal_those_of_fp64_gradients(kind):
    model, pairs = make(kind), draw(13)
    targets = find_targets(model, ".")
    samples = ObjectiveSamples(pairs, objective=CLASSIFY, batch_size=5)
    with preserved(model):
        scores = score_targets(model, targets, samples, block_counts=(1, 3), factors=store_of(model, targets))
    exact = copy.deepcopy(model).double().eval()
    x, y = stacked(pairs, torch.float64)
    cross_entropy(exact(x), y).backward()
    for (target, blocks), score in scores.items():
        weight, gradient = target.view(target.parameter(exact)), target.view(target.parameter(exact).grad)
        expected = score_blocks(weight, gradient, blocks=blocks, backend="reference")
        scale = expected.grad.square().mean().sqrt()
        torch.testing.assert_close(score.grad / scale, expected.grad / scale, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("objective", [CLASSIFY, REAL], ids=["right", "real"])
@pytest.mark.parametrize("kind", MODELS)
def test_trials_equal_measuring_a_copy_with_the_truncated_weight(kind, objective):
    model, pairs = make(kind).eval(), draw(23)
    targets = find_targets(model, ".")
    samples = ObjectiveSamples(pairs, objective=objective, batch_size=5)
    candidates = [Candidate(t, k, ratio) for t in targets for k in (1, 3) for ratio in (0.6, 0.0)]
    with preserved(model):
        baseline, trials = run_trials(
            model, candidates, samples, store_of(model, targets), Settings(race=False, progress=False)
        )
    for trial in trials:
        copied, target = copy.deepcopy(model).double(), trial.candidate.target
        weight = target.view(target.parameter(copied))
        truncated = reduce_blocks(
            weight, ratios=trial.candidate.ratio, blocks=trial.candidate.blocks, backend="reference"
        )
        target.write(target.parameter(copied), truncated)
        x, y = stacked(pairs, torch.float64)
        with torch.no_grad():
            logits = copied(x)
        assert trial.measurement.log_loss == pytest.approx(cross_entropy(logits, y).item(), abs=1e-5)
        expected = np.asarray(objective.score(logits, pairs), dtype=float)
        np.testing.assert_allclose(trial.measurement.correct, expected, atol=1e-5)
        np.testing.assert_allclose(trial.gain, expected - baseline.correct, atol=1e-5)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("objective", [CLASSIFY, REAL], ids=["right", "real"])
def test_the_whole_method_runs_and_leaves_the_module_as_it_was(kind, objective, tmp_path):
    pairs = relabelled(make(kind), draw(120), best=False)  # so wrong that some edit helps
    model = make(kind).train()
    next(model.parameters()).requires_grad_(False)
    before = copy.deepcopy(model)
    result = adapt(model, pairs, objective=objective, accept="best", **SMALL)
    for mine, theirs in zip(model.state_dict().values(), before.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)
    for mine, theirs in zip(model.parameters(), before.parameters(), strict=True):
        assert (mine.requires_grad, mine.grad) == (theirs.requires_grad, None)
    assert all(module.training for module in model.modules())

    assert result.edit is not None
    figures = result.to_dict()["held_out"]["edited"]
    assert (figures["majority_rate"], figures["balanced_accuracy"], figures["collapsed"]) == (None, None, None)
    assert "score" in str(result)
    assert "majority" not in str(result)

    result.save(tmp_path / "out")
    names = {"model.safetensors", CONFIG_NAME, FACTORS_NAME, SUMMARY_NAME, REPORT_NAME, FILES_NAME, CARD_NAME}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    reloaded, applied = make(kind), copy.deepcopy(model)
    safetensors.torch.load_model(reloaded, tmp_path / "out" / "model.safetensors")
    Edit.load(tmp_path / "out").apply(applied)
    x, _ = stacked(draw(5, seed=1))
    with torch.no_grad():
        assert torch.equal(reloaded.eval()(x), applied.eval()(x))
        assert not torch.equal(applied(x), before.eval()(x))


@pytest.mark.parametrize("objective", [CLASSIFY, REAL], ids=["right", "real"])
def test_a_race_stops_what_loses_and_finds_what_the_full_grid_finds(objective):
    model = make(Recurrent)
    pairs = relabelled(model, draw(400), best=True)  # right as it is: most edits lose
    options = SMALL | {"calibration": 150, "accept": "best"}  # by a test there would be nothing to try
    raced, full = (adapt(model, pairs, objective=objective, race=r, **options) for r in (True, False))
    assert any(not trial.finished for trial in raced.rounds[0].trials)
    assert all(trial.finished for trial in full.rounds[0].trials)
    best = [result.rounds[0].decision.accepted or result.rounds[0].decision.rejected for result in (raced, full)]
    assert best[0].candidate == best[1].candidate


def test_an_effect_is_found_accepted_and_holds():
    """A weight that is right but for noise in its small singular values; truncation brings the classes back."""
    model = nn.Sequential(nn.Linear(24, 24, bias=False))
    generator = torch.Generator().manual_seed(0)
    u, _, vh = torch.linalg.svd(torch.randn(24, 24, generator=generator))
    clean = (u[:, :4] * 4) @ vh[:4]
    with torch.no_grad():
        model[0].weight.copy_(clean + (u[:, 4:] * 3.0) @ vh[4:].flip(0))
    x = torch.randn(400, 24, generator=generator)
    samples = list(zip(x, (x @ clean.T).argmax(-1).tolist(), strict=True))
    objective = Objective(lambda m, batch: m(stacked(batch)[0]), loss, right)
    options = {"targets": "0", "blocks": (1,), "ratios": (0.5, 0.17), "confirm": 100, "progress": False}
    result = adapt(model, samples, objective=objective, **options)
    assert result.edit.candidate.ranks == (4,)
    assert result.rounds[0].decision.confirmation.comparison.edited.accuracy == 1
    assert (result.rounds[0].decision.confirmation.independent, result.held_out.baseline.n) == (100, 200)
    assert result.held_out.edited.accuracy == 1
    assert result.held_out.verdict == "helps"


def test_an_encoder_of_transformers_is_saved_as_its_own_checkpoint(tmp_path):
    """Cosines of two texts' mean hidden states, as a score that is real."""
    encoder = make_model("gptj").transformer
    generator = torch.Generator().manual_seed(0)
    pairs = list(torch.randint(4, 30, (60, 2, 6), generator=generator))

    def cosine(model, batch):
        first, second = (model(input_ids=ids).last_hidden_state.mean(1) for ids in torch.stack(batch).unbind(1))
        return cosine_similarity(first, second)

    objective = Objective(cosine, lambda c, _: 1 - c, lambda c, _: (1 + c) / 2)
    result = adapt(encoder, pairs, objective=objective, accept="best", blocks=(1,), ratios=(0.1, 0.0), progress=False)
    result.save(tmp_path / "out")
    reloaded = type(encoder).from_pretrained(tmp_path / "out")
    with result.edit.applied(encoder):
        assert all(torch.equal(a, b) for a, b in zip(reloaded.parameters(), encoder.parameters(), strict=True))
    low, high = result.held_out.interval
    gain = result.held_out.edited.accuracy - result.held_out.baseline.accuracy
    assert -1 < low < gain < high < 1
    assert gain == pytest.approx((result.held_out.edited.correct - result.held_out.baseline.correct).mean())


def test_half_precision_modules_adapt():
    model = make(Convolutional, torch.bfloat16)
    pairs = relabelled(model, draw(80), best=False)
    result = adapt(model, pairs, objective=CLASSIFY, accept="best", **SMALL)
    before = evaluate(model.eval(), ObjectiveSamples(pairs, objective=CLASSIFY))
    assert result.edit.weight.dtype == torch.bfloat16
    result.edit.apply(model)
    assert evaluate(model, ObjectiveSamples(pairs, objective=CLASSIFY)).log_loss < before.log_loss


def test_the_same_seed_gives_the_same_result():
    first, second = (adapt(make(Recurrent), draw(60), objective=REAL, **SMALL) for _ in range(2))
    assert first.rounds[0].decision.p_value == second.rounds[0].decision.p_value
    assert first.rounds[0].ranking == second.rounds[0].ranking


def test_samples_of_a_group_stay_on_one_side_and_flip_together():
    pairs, numbers = draw(120), itertools.count()
    named = [(x, y, next(numbers) // 4) for x, y in pairs]
    seen = {"calibration": set(), "held-out": set()}

    def look(model, batch):
        seen["held-out" if not torch.is_grad_enabled() else "calibration"] |= {sample[2] for sample in batch}
        return forward(model, [sample[:2] for sample in batch])

    objective = Objective(
        look, lambda o, b: loss(o, [s[:2] for s in b]), lambda o, b: right(o, [s[:2] for s in b]), lambda s: s[2]
    )
    result = adapt(make(Recurrent), named, objective=objective, **SMALL)
    assert len(seen["calibration"]) == 15  # half of the groups; gradients are of the calibration samples alone
    assert len(seen["held-out"]) == 30
    assert (result.calibration.baseline.n, result.held_out.baseline.n) == (60, 60)
    samples = ObjectiveSamples(named, objective=objective)
    assert samples.groups == [str(i // 4) for i in range(120)]


def test_a_candidate_that_gives_nan_is_a_failed_trial_not_a_failed_run():
    def fragile(model, batch):
        return forward(model, batch) * (1 if model.lstm.weight_hh_l0.any() else torch.nan)

    objective = dataclasses.replace(REAL, forward=fragile)
    result = adapt(make(Recurrent), draw(60), objective=objective, **SMALL | {"targets": "weight_hh"}).to_dict()
    assert [(t["accuracy"], t["log_loss"]) for t in result["trials"] if t["rank"] == 0] == [(0, None)]


def test_a_score_that_exceeds_one_by_rounding_is_one():
    samples = ObjectiveSamples(
        draw(5), objective=Objective(forward, loss, lambda o, b: torch.full((len(b),), 1 + 2e-7))
    )
    assert evaluate(make(Recurrent).eval(), samples).accuracy == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": lambda o, b: loss(o, b).mean()}, r"expected a loss of every sample.*\[16\], got \[\] of float32"),
        ({"loss": lambda o, b: loss(o, b).unsqueeze(1)}, r"got \[16, 1\]"),
        ({"loss": lambda o, b: 0.5}, "expected a loss of every sample.*got a float"),
        ({"loss": lambda o, b: right(o, b)}, r"floating-point tensor.*got \[16\] of bool"),
        ({"loss": lambda o, b: loss(o, b).detach()}, "none reached .* or the loss is detached"),
        (
            {"loss": lambda o, b: loss(o, b) * torch.nan},
            "expected a finite loss of every sample, got NaN or Inf for 30, at 0 of 30",
        ),
        ({"score": lambda o, b: None}, "expected a score of every sample.*got a NoneType"),
        ({"score": lambda o, b: o}, r"expected a score of every sample.*got \[\d+, 3\] of float32"),
        ({"score": lambda o, b: -loss(o, b)}, r"expected scores from 0 to 1, got -.*\(1 \+ cosine\) / 2"),
        ({"score": lambda o, b: loss(o, b) * torch.nan}, "expected a finite score of every sample, got NaN or Inf"),
    ],
)
def test_mistakes_in_the_objective_are_named_before_the_search(change, message, monkeypatch):
    monkeypatch.setitem(SEARCHES, "truncate", None)  # calling it would be another error
    with pytest.raises(LasertriError, match=message):
        adapt(make(Recurrent), draw(60), objective=dataclasses.replace(CLASSIFY, **change), **SMALL)


@pytest.mark.parametrize(
    ("samples", "options", "message"),
    [
        ([], {}, "expected samples for the objective, got none"),
        ("train.jsonl", {}, "expected the samples themselves beside an objective, got the file 'train.jsonl'"),
        (draw(30), {}, "at least 20 calibration samples, got 15 of 30"),
        (draw(60), {"held_out": []}, "got none"),
        (draw(60), {"targets": None}, "expected MLP matrices in a model of type 'Recurrent', saw 1 × head"),
        (draw(60), {"targets": "nowhere"}, r"a module path that matches 'nowhere', saw .*lstm\.weight_hh_lN"),
        (draw(60), {"blocks": (1000,)}, "expected a number of blocks K of at most"),
    ],
)
def test_what_cannot_work_fails_before_the_module_runs(samples, options, message):
    model = make(Recurrent)
    model.forward = None  # calling it would be another error
    with pytest.raises(LasertriError, match=message):
        adapt(model, samples, objective=CLASSIFY, **SMALL | options)


def test_held_out_samples_that_calibrate_are_refused():
    pairs = draw(60)
    with pytest.raises(LasertriError, match="on both sides"):
        adapt(make(Recurrent), pairs, held_out=pairs[:10], objective=CLASSIFY, **SMALL)


def test_a_module_without_an_objective_asks_for_one(samples):
    with pytest.raises(LasertriError, match=r"got a Recurrent; say with objective=Objective\("):
        adapt(make(Recurrent), samples)


def test_batches_that_memory_does_not_hold_are_halved():
    model, pairs, told = make(Recurrent).eval(), draw(20), []

    def room_for_three(model, batch):
        if len(batch) > 3:
            raise torch.OutOfMemoryError("out of memory")
        return forward(model, batch)

    few = ObjectiveSamples(pairs, objective=dataclasses.replace(REAL, forward=room_for_three))
    with torch.no_grad():
        expected = ObjectiveSamples(pairs, objective=REAL).read(model)
        found = few.read(model, advance=told.append)
    np.testing.assert_allclose(found.losses, expected.losses, atol=1e-6)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-6)
    assert sum(told) == 20
    assert adapt(model, pairs * 2, objective=few.objective, **SMALL).rounds[0].trials
