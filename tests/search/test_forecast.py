"""What truncations should do to the loss equals what one plain backward pass per sample says of them."""

import pytest
import torch
from faults import room_for
from killing import Killer
from tiny import make_model, make_samples, make_tokenizer
from torch import nn

from lasertri import LasertriError, Objective, Sample, reduce_blocks
from lasertri.edit.candidate import Candidate
from lasertri.factors.store import FactorStore
from lasertri.language.samples import EncodedSamples
from lasertri.measure.objective import ObjectiveSamples
from lasertri.model.preserve import preserved
from lasertri.model.targets import find_targets
from lasertri.search.forecast import forecast
from lasertri.support.journal import Journal

RATIOS, BLOCKS = (0.7, 0.2, 0.0), (1, 3)


@pytest.fixture(autouse=True)
def _few_tokens_at_once(monkeypatch):
    monkeypatch.setattr("lasertri.search.forecast.TOKENS", 7)


def grid(model, pattern=None):
    targets = find_targets(model, pattern)
    return [Candidate(target, blocks, ratio) for target in targets for blocks in BLOCKS for ratio in RATIOS]


def foretold(model, samples, candidates, **options):
    factors = FactorStore(model, {candidate.target for candidate in candidates}, BLOCKS, budget=1 << 30)
    with preserved(model):
        return forecast(model, candidates, samples, factors, **options)


def by_plain_gradients(model, samples, candidates):
    """-(mean p + ½ var p) of p_s = ⟨G_s, A_k - A⟩, the samples' gradients made one by one."""
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    changes = torch.zeros(len(candidates), len(samples), dtype=torch.float64)
    differences = []
    for candidate in candidates:
        weight = candidate.target.view(candidate.target.parameter(model)).double()
        reduced = reduce_blocks(weight, ratios=candidate.ratio, blocks=candidate.blocks, backend="reference")
        differences.append(reduced - weight)
    for i in range(len(samples)):
        model.zero_grad()
        sum(batch.loss(model) for batch in samples.loss_batches([i])).backward()
        for n, candidate in enumerate(candidates):
            gradient = candidate.target.parameter(model).grad
            if gradient is not None:
                changes[n, i] = (candidate.target.view(gradient).double() * differences[n]).sum()
    return -changes.mean(dim=1) - 0.5 * changes.var(dim=1, correction=0)


CASES = [(name, torch.float32) for name in ("gptj", "gpt2", "phi3", "mixtral", "t5", "roberta")]


@pytest.mark.parametrize(("architecture", "dtype"), [*CASES, ("phi3", torch.bfloat16), ("gpt2", torch.float16)])
def test_it_is_what_gradients_of_single_samples_say(architecture, dtype):
    model, tokenizer = make_model(architecture, dtype=dtype).eval(), make_tokenizer(architecture)
    samples = EncodedSamples(make_samples(19), model=model, tokenizer=tokenizer)
    candidates = grid(model)
    found = foretold(model, samples, candidates)
    expected = by_plain_gradients(model, samples, candidates)
    loose = 1e-4 if dtype == torch.float32 else 0.1  # gradients in half precision have two digits or three
    scale = expected.square().mean().sqrt()
    torch.testing.assert_close(found / scale, expected / scale, rtol=loose, atol=loose)


class Several(nn.Module):
    """Matrices of a recurrent layer, of attention, which multiplies with its last layer itself, and of a plain one."""

    def __init__(self):
        super().__init__()
        self.lstm, self.attention = nn.LSTM(5, 7, batch_first=True), nn.MultiheadAttention(7, 1, batch_first=True)
        self.head, self.unused = nn.Linear(7, 3), nn.Linear(7, 3)

    def forward(self, x):
        x = self.lstm(x)[0]
        return self.head(self.attention(x, x, x)[0][:, -1])


def several():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, pairs = Several().eval(), [(torch.randn(4, 5), i % 3) for i in range(11)]
    objective = Objective(
        forward=lambda model, batch: model(torch.stack([x for x, _ in batch])),
        loss=lambda out, batch: nn.functional.cross_entropy(out, torch.tensor([y for _, y in batch]), reduction="none"),
        score=lambda out, batch: out.argmax(-1) == torch.tensor([y for _, y in batch]),
    )
    return model, ObjectiveSamples(pairs, objective=objective)


def test_matrices_that_no_layer_multiplies_with_are_foretold_from_their_gradients():
    model, samples = several()
    candidates = grid(model, "lstm|attention|head")
    assert {candidate.target.name for candidate in candidates} == {
        *("lstm.weight_ih_l0", "lstm.weight_hh_l0", "attention.in_proj_weight", "attention.out_proj.weight"),
        "head.weight",
    }
    expected = by_plain_gradients(model, samples, candidates)
    torch.testing.assert_close(foretold(model, samples, candidates), expected, rtol=1e-3, atol=1e-6)


def test_a_matrix_that_no_gradient_reaches_is_named():
    model, samples = several()
    with pytest.raises(LasertriError, match=r"expected a gradient for every target, none reached unused\.weight"):
        foretold(model, samples, grid(model, "unused|head"))


@pytest.mark.parametrize("architecture", ["gptj", "mixtral"])  # an expert's samples come one by one
def test_fewer_tokens_at_once_foretell_the_same(architecture):
    model, tokenizer = make_model(architecture), make_tokenizer(architecture)
    several = [Sample("a b c", choices=("d e f", "g", "h i"), label=2), *make_samples(11)]
    samples = EncodedSamples(several, model=model, tokenizer=tokenizer, batch_size=6)
    expected = foretold(model, samples, grid(model))
    asked = room_for(model, 12)
    found = foretold(model, samples, grid(model))
    assert max(asked) > 12
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("case", ["batch by batch", "sample by sample", "by gradients"])
def test_a_forecast_that_was_killed_goes_on_with_the_next_batch(tmp_path, monkeypatch, case):
    if case == "by gradients":
        model, samples = several()
        candidates = grid(model, "lstm|attention|head")
    else:
        model = make_model("gptj" if case == "batch by batch" else "mixtral").eval()
        samples, candidates = EncodedSamples(make_samples(19), model=model, tokenizer=make_tokenizer()), grid(model)
    samples.batch_size = 2
    forwards = []
    model.register_forward_pre_hook(lambda *_: forwards.append(1))
    killer, expected = Killer(monkeypatch), foretold(model, samples, candidates)
    once = len(forwards)
    forwards.clear()
    found, times = killer.until_it_ends(
        lambda: foretold(model, samples, candidates, journal=Journal.open(tmp_path, "forecast")), 3
    )
    assert found.equal(expected)
    assert times >= 3
    assert len(forwards) <= once + times  # the first batch shows whether samples can be told apart


class Pairs(nn.Module):
    """Runs one layer on one vector and then on two."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(5, 3)

    def forward(self, x):
        once, twice = self.inner(x), self.inner(torch.cat([x, x.flip(-1)]).tanh())
        return once + twice[: len(x)] * twice[len(x) :]


def test_a_layer_that_runs_on_tensors_of_different_lengths():
    _, samples = several()
    pairs = [(x[0], y) for x, y in samples.samples]
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = Pairs().eval()
    samples = ObjectiveSamples(pairs, objective=samples.objective)
    candidates = grid(model, ".")
    expected = by_plain_gradients(model, samples, candidates)
    torch.testing.assert_close(foretold(model, samples, candidates), expected, rtol=1e-3, atol=1e-6)
