"""Trials without an edited weight: as close to the FP64 edit as a really edited model, whatever the architecture."""

import logging

import numpy as np
import pytest
import torch
from exactness import assert_as_close_as_edits, candidates_of, edited, encode, model_log_probs, trial_log_probs
from marks import slow, slow_but
from tiny import CONFIGS, ENCODER_DECODERS, LAYERS, make_model, make_samples, make_tokenizer

from lasertri.edit.candidate import Candidate
from lasertri.errors import TooLittleMemoryError
from lasertri.factors.store import FactorStore
from lasertri.model.targets import find_targets
from lasertri.search.projected import Projected
from lasertri.search.replay import Replay
from lasertri.search.settings import Settings
from lasertri.search.trials import plan_trials, run_trials
from lasertri.support.journal import Journal


@pytest.mark.parametrize("dtype", [torch.float32, slow(torch.bfloat16)])
@pytest.mark.parametrize("architecture", slow_but("gptj", "gpt2", "roberta", "t5", of=sorted(CONFIGS)))
def test_a_trial_is_as_close_to_the_fp64_edit_as_an_edited_model(architecture, dtype):
    model, tokenizer = make_model(architecture, dtype=dtype), make_tokenizer(architecture)
    candidates = candidates_of(model)
    assert {c.target.layer for c in candidates} == set(range(LAYERS * (1 + (architecture in ENCODER_DECODERS))))
    assert_as_close_as_edits(model, tokenizer, candidates, encode(model, tokenizer))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_so_is_one_of_a_t5_with_gates(dtype):
    model, tokenizer = make_model("t5", dtype=dtype, feed_forward_proj="gated-gelu"), make_tokenizer("t5")
    assert_as_close_as_edits(model, tokenizer, candidates_of(model), encode(model, tokenizer))


@pytest.mark.parametrize("dtype", [torch.bfloat16, slow(torch.float32)])
@pytest.mark.parametrize(
    "architecture",
    slow_but(
        *("gpt_neox", "llama", "phi3"),
        of=("gptj", "gpt2", "gpt_neox", "opt", "llama", "gemma2", "phi3", "mixtral", "roberta", "t5"),
    ),
)
def test_so_are_trials_of_attention_matrices(architecture, dtype):
    model, tokenizer = make_model(architecture, dtype=dtype), make_tokenizer(architecture)
    candidates = [c for c in candidates_of(model, "(?i)att") if c.blocks in (1, 3)]
    assert_as_close_as_edits(model, tokenizer, candidates, encode(model, tokenizer))


def test_trials_of_experts_start_at_their_layer_and_say_so_once(tokenizer, caplog, monkeypatch):
    model, ran = make_model("mixtral"), []
    samples = encode(model, tokenizer)
    experts = candidates_of(model, r"layers\.2\..*experts")
    for i, layer in enumerate(model.model.layers):
        layer.self_attn.k_proj.register_forward_hook(lambda *_, i=i: ran.append(i))
    with caplog.at_level(logging.INFO):
        trial_log_probs(model, samples, experts)
    assert ran.count(0) == ran.count(2) < len(experts) * len(samples.batches())
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert "9 targets are no linear layers" in caplog.text


def test_a_sliding_window_shorter_than_the_rows(tokenizer):
    model = make_model("mistral", sliding_window=3)
    assert_as_close_as_edits(model, tokenizer, candidates_of(model), encode(model, tokenizer))


@pytest.mark.parametrize("tokens", [1, 40, 100_000])
def test_how_copies_are_batched_makes_no_difference(model, tokenizer, tokens):
    samples, candidates = encode(model, tokenizer), candidates_of(model)
    expected, *_ = trial_log_probs(model, samples, candidates)
    found, *_ = trial_log_probs(model, samples, candidates, tokens=tokens)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_batches_that_do_not_fit_are_halved(model, tokenizer, monkeypatch):
    samples, candidates, asked, original = encode(model, tokenizer), candidates_of(model), [], Replay.read
    expected, *_ = trial_log_probs(model, samples, candidates)

    def read(replay, model, outputs):
        asked.append(outputs.shape[:-1].numel())
        if asked[-1] > 60:
            raise torch.OutOfMemoryError("out of memory")
        return original(replay, model, outputs)

    monkeypatch.setattr(Replay, "read", read)
    found, *_ = trial_log_probs(model, samples, candidates)
    assert max(asked) > 60
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_where_not_even_a_row_fits_twice_trials_run_in_place_or_it_is_said(model, tokenizer, monkeypatch, caplog):
    samples, candidates = encode(model, tokenizer), candidates_of(model)[:4]
    expected, *_ = trial_log_probs(model, samples, candidates)
    factors = FactorStore(model, {c.target for c in candidates}, [1], budget=1 << 30)
    projected = Projected(model, samples, candidates, factors)

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has")

    monkeypatch.setattr(Replay, "read", full)
    with (
        torch.no_grad(),
        pytest.raises(
            TooLittleMemoryError,
            match=r"expected memory for one sample .* the device .*\(2\.00 GiB more were needed\); free",
        ),
    ):
        projected.run(candidates, range(len(samples)))
    [(_, none), (in_place, others)] = plan_trials(model, candidates, samples, factors)
    assert (none, len(others)) == (set(), len(candidates))
    assert "in place, which is slower: expected memory for one row twice" in caplog.text
    with torch.no_grad():
        found = in_place.run(candidates, range(len(samples)))
    np.testing.assert_allclose(found.edited.log_probs, expected, atol=1e-4)


def test_only_layers_from_the_target_on_run(model, tokenizer, monkeypatch):
    samples, ran = encode(model, tokenizer), []
    last = [c for c in candidates_of(model) if c.target.layer == LAYERS - 1]
    for i, layer in enumerate(model.transformer.h):
        layer.attn.k_proj.register_forward_hook(lambda *_, i=i: ran.append(i))
    trial_log_probs(model, samples, last)
    passes = ran.count(0)
    assert ran.count(LAYERS - 1) == passes  # the baseline's passes alone: trials of MLPs replay attention too


@pytest.mark.parametrize("architecture", ["gptj", "roberta", "bert", "t5"])
def test_the_head_reads_only_places_with_answers(architecture):
    model, tokenizer = make_model(architecture), make_tokenizer(architecture)
    seen, samples = [], encode(model, tokenizer, make_samples(12))
    model.get_output_embeddings().register_forward_hook(
        lambda _, arguments, __: seen.append(arguments[0].shape[:-1].numel())
    )
    model_log_probs(model, samples)
    places = (zip(batch.row.tolist(), batch.position.tolist(), strict=True) for batch in samples.batches())
    assert sum(seen) == sum(len(set(batch)) for batch in places)  # two choices at each


def test_a_model_that_cannot_be_replayed_is_measured_with_the_weight_in_place(model, tokenizer, caplog):
    class Twice(torch.nn.Module):
        """A layer that runs its MLP a second time."""

        def __init__(self, mlp):
            super().__init__()
            self.mlp = mlp

        def forward(self, x):
            return self.mlp(x) + self.mlp(x)

    model.transformer.h[0].mlp = Twice(model.transformer.h[0].mlp)
    assert_measured_as_edited(model, tokenizer, [Candidate(t, 1, 0.5) for t in find_targets(model, "mlp")], caplog)
    assert caplog.text.count("runs 2 times in one forward pass") == 2


def test_a_model_whose_rows_are_not_first_is_measured_likewise(tokenizer, caplog):
    """Llama 4 hands its experts every token once for each of them; it stores them as [inputs, outputs]."""
    model = make_model("llama4_text")
    candidates = [Candidate(t, 3, 0.4) for t in find_targets(model, r"layers\.2.*expert")]
    assert {(c.target.expert, c.target.transposed) for c in candidates} >= {(2, True), (None, False)}
    assert_measured_as_edited(model, tokenizer, candidates, caplog)
    assert "replaying what runs before it fails" in caplog.text


def assert_measured_as_edited(model, tokenizer, candidates, caplog):
    samples = encode(model, tokenizer)
    store = FactorStore(model, {c.target for c in candidates}, [1], budget=1 << 30)
    with caplog.at_level(logging.WARNING):
        _, trials = run_trials(model, candidates, samples, store, Settings(race=False, progress=False))
    for trial in trials:
        expected = -model_log_probs(edited(model, trial.candidate, torch.float32), samples)
        answers = np.add.reduceat(expected, samples.table.first_token)
        gold = [answers[s + sample.gold] for s, sample in zip(samples.table.first_answer, samples.samples, strict=True)]
        assert trial.measurement.log_loss == pytest.approx(np.mean(gold), rel=1e-4)


def test_a_model_whose_replay_differs_is_noticed(model, tokenizer, caplog):
    """A layer that counts its calls gives another answer every time."""
    calls = []
    model.transformer.h[2].mlp.register_forward_hook(lambda _, __, output: (calls.append(1), output * len(calls))[1])
    candidates = candidates_of(model)[:1]
    store = FactorStore(model, {candidates[0].target}, [1], budget=1 << 30)
    with caplog.at_level(logging.WARNING), torch.no_grad():
        trials = Projected(model, encode(model, tokenizer), candidates, store)
    assert not trials.supports(candidates[0])
    assert "does not give the model's own answers" in caplog.text


def test_a_matrix_of_another_kind_of_module_is_put_in_place(model, tokenizer, caplog):
    """Its module's output is not the matrix times its input."""

    class Mixing(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.mix = torch.nn.Parameter(torch.eye(40) + 0.1 * torch.arange(1600.0).reshape(40, 40).sin())

        def forward(self, x):
            return (x @ self.mix).tanh()

    model.transformer.h[1].mlp.act = Mixing()
    samples, candidates = encode(model, tokenizer), candidates_of(model, "mix")
    store = FactorStore(model, {c.target for c in candidates}, [1], budget=1 << 30)
    with caplog.at_level(logging.INFO):
        _, trials = run_trials(model, candidates, samples, store, Settings(race=False, progress=False))
    assert "1 targets are no linear layers" in caplog.text
    for trial in trials:
        exact = model_log_probs(edited(model, trial.candidate, torch.float64), samples)
        gold = [start + sample.gold for start, sample in zip(samples.table.first_answer, samples.samples, strict=True)]
        expected = np.add.reduceat(exact, samples.table.first_token)[gold]
        assert trial.measurement.log_loss == pytest.approx(-expected.mean(), abs=1e-4)


def test_batches_are_as_large_as_they_were_whatever_memory_is_free_by_now(model, tokenizer, tmp_path):
    candidates = candidates_of(model)

    def tokens(about, budget):
        store = FactorStore(model, {c.target for c in candidates}, [1], budget=budget)
        with Journal.open(tmp_path, about) as journal, torch.no_grad():
            return Projected(model, encode(model, tokenizer), candidates, store, journal).tokens

    few = tokens("trials", 300_000)
    assert tokens("trials", 1 << 30) == few < tokens("others", 1 << 30)
