"""∂L/∂σ of a model's matrices, streamed, equals what one plain backward pass gives."""

import itertools

import pytest
import torch
from faults import out_of_memory, room_for
from tiny import CLOSED, OPENED, PAD, make_model, make_samples, make_tokenizer

from lasertri import LasertriError, score_blocks
from lasertri.factors.store import FactorStore
from lasertri.language.samples import EncodedSamples
from lasertri.model.preserve import preserved
from lasertri.model.targets import Target, find_targets
from lasertri.search.scoring import Scorer, score_targets, scoring_blocks

BLOCKS = (1, 3)


def scored(model, tokenizer, samples, *, batch_size=5, budget=1 << 30):
    encoded = EncodedSamples(samples, model=model, tokenizer=tokenizer, batch_size=batch_size)
    targets = find_targets(model)
    with preserved(model):
        return score_targets(
            model, targets, encoded, block_counts=BLOCKS, factors=FactorStore(model, targets, BLOCKS, budget=budget)
        )


def plain_gradients(model, tokenizer, samples, targets):
    """L = Σ tokens −log p, averaged over samples, one row at a time; gradients with rows = outputs."""
    model.zero_grad()
    loss = 0
    for sample in samples:
        prompt, gold = tokenizer(sample.prompt)["input_ids"], tokenizer(sample.answers[sample.gold])["input_ids"]
        log_probs = model(torch.tensor([prompt + gold])).logits[0].log_softmax(-1)
        loss = loss - sum(log_probs[len(prompt) + i - 1, token] for i, token in enumerate(gold))
    (loss / len(samples)).backward()
    return {target: target.view(target.parameter(model).grad) for target in targets}


PARTS = ["phi3", "mixtral", "qwen2_moe", "qwen3_moe"]  # several targets to a parameter


@pytest.mark.parametrize("architecture", ["gptj", "gpt2", "llama", *PARTS])
def test_streamed_scores_equal_plain_gradients(model_of, tokenizer, architecture):
    model, samples = model_of(architecture), make_samples(12)
    scores = scored(model, tokenizer, samples)
    gradients = plain_gradients(model, tokenizer, samples, find_targets(model))
    assert set(scores) == {(target, blocks) for target in gradients for blocks in BLOCKS}
    for (target, blocks), score in scores.items():
        weight = target.view(target.parameter(model))
        expected = score_blocks(weight, gradients[target], blocks=blocks, backend="reference")
        torch.testing.assert_close(score.sigma, expected.sigma)
        scale = expected.grad.square().mean().sqrt()
        torch.testing.assert_close(score.grad / scale, expected.grad / scale, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", ["roberta", "t5"])
def test_so_do_those_of_masked_models_and_encoder_decoders(architecture):
    model, tokenizer, samples = make_model(architecture), make_tokenizer(architecture), make_samples(12)
    scores = scored(model, tokenizer, samples)
    loss = 0
    for sample in samples:
        prompt, gold = (
            tokenizer(text, add_special_tokens=False)["input_ids"]
            for text in (sample.prompt, sample.answers[sample.gold])
        )
        if architecture == "roberta":
            row = [OPENED, *prompt, tokenizer.mask_token_id, CLOSED]
            logits = model(input_ids=torch.tensor([row])).logits[0, -2]
        else:
            rows = [torch.tensor([row]) for row in ([*prompt, CLOSED], [PAD])]
            logits = model(input_ids=rows[0], decoder_input_ids=rows[1]).logits[0, 0]
        loss = loss - logits.log_softmax(-1)[gold[0]]
    (loss / len(samples)).backward()
    for (target, blocks), score in scores.items():
        weight, gradient = (target.view(t) for t in (target.parameter(model), target.parameter(model).grad))
        expected = score_blocks(weight, gradient, blocks=blocks, backend="reference").grad
        scale = expected.square().mean().sqrt()
        torch.testing.assert_close(score.grad / scale, expected / scale, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", ["gptj", *PARTS])
@pytest.mark.parametrize("role", ["fc_in", "fc_out"])
def test_truncation_lowers_the_loss_as_the_taylor_score_predicts(model_of, tokenizer, architecture, role):
    """The sign: for a small step of σ along its score the loss falls by what the score says."""
    model, samples = model_of(architecture), make_samples(12)
    encoded = EncodedSamples(samples, model=model, tokenizer=tokenizer)
    scores = scored(model, tokenizer, samples)
    target = [t for t, blocks in scores if t.role == role and t.layer == 0][-1]
    score = scores[target, 1]
    weight = target.view(target.parameter(model))
    u, sigma, vh = torch.linalg.svd(weight.double(), full_matrices=False)

    def loss():
        return -sum(batch.read(model)[0].double().sum().item() for batch in encoded.gold_batches()) / len(samples)

    with torch.no_grad():
        before, original, step = loss(), weight.clone(), 1e-3
        weight.copy_((u * (sigma * (1 - step))) @ vh)  # shrink every singular value a little
        decrease = (before - loss()) / step
        weight.copy_(original)
    assert decrease == pytest.approx(score.tail(ratios=0.0).item(), rel=0.05, abs=1e-3)


def test_micro_batches_do_not_change_the_score(model, tokenizer):
    samples = make_samples(12)
    whole, parts = (scored(model, tokenizer, samples, batch_size=size) for size in (12, 1))
    for key, score in whole.items():
        torch.testing.assert_close(parts[key].grad, score.grad, rtol=1e-3, atol=1e-6)


def test_a_small_memory_budget_recomputes_factors_and_changes_nothing(model, tokenizer):
    samples, targets = make_samples(6), find_targets(model)
    tight = FactorStore(model, targets, BLOCKS, budget=1 << 30).budget.workspace
    for key, score in scored(model, tokenizer, samples).items():
        torch.testing.assert_close(scored(model, tokenizer, samples, budget=tight)[key].grad, score.grad)
    with pytest.raises(LasertriError, match="memory budget of at least"):
        scored(model, tokenizer, samples, budget=tight - 1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("architecture", ["gptj", *PARTS])
def test_half_precision_models_score_near_their_fp32_selves(model_of, tokenizer, architecture, dtype):
    samples = make_samples(12)
    exact = scored(model_of(architecture, dtype=dtype).float(), tokenizer, samples)
    for key, score in scored(model_of(architecture, dtype=dtype), tokenizer, samples).items():
        expected = exact[key].grad
        few_tokens = key[0].expert is not None
        assert (score.grad - expected).norm() <= (0.1 if few_tokens else 0.05) * expected.norm()


def test_an_overflowing_loss_scale_is_lowered(model_of, tokenizer):
    """Logits near the end of fp16's range: gradients overflow under the largest scale, not without one."""
    model = model_of("gptj", dtype=torch.float16)
    with torch.no_grad():
        model.transformer.h[1].mlp.fc_out.weight.mul_(60)
    assert all(torch.isfinite(score.grad).all() for score in scored(model, tokenizer, make_samples(6)).values())


def test_a_non_finite_gradient_names_its_parameter(model, tokenizer):
    last = model.transformer.h[2].mlp.fc_out
    last.register_full_backward_hook(lambda _, inputs, __: (inputs[0] * torch.nan,))
    with pytest.raises(LasertriError, match=r"got NaN or Inf for transformer\.h\.2\.mlp\.fc_in\.weight; a function"):
        scored(model, tokenizer, make_samples(6))


def test_a_target_that_gets_no_gradient_is_named(model, tokenizer):
    forward = model.transformer.h[1].mlp.forward
    model.transformer.h[1].mlp.forward = lambda x: forward(x).detach()
    with pytest.raises(LasertriError, match=r"none reached transformer\.h\.1\.mlp\.fc_in\.weight"):
        scored(model, tokenizer, make_samples(6))


def test_hooks_that_would_run_in_the_backward_pass_are_refused(model, tokenizer):
    model.transformer.h[0].mlp.fc_in.weight.register_post_accumulate_grad_hook(lambda p: None)
    with pytest.raises(LasertriError, match=r"fc_in\.weight without post-accumulate-grad hooks"):
        scored(model, tokenizer, make_samples(6))


@pytest.mark.parametrize("architecture", ["gptj", "mixtral"])
def test_no_two_gradients_exist_at_once(model_of, tokenizer, monkeypatch, architecture):
    model, alive = model_of(architecture), []

    def counted(weight, grad, **options):
        alive.append(sum(p.grad is not None for p in model.parameters()))
        return score_blocks(weight, grad, **options)

    monkeypatch.setattr("lasertri.search.scoring.score_blocks", counted)
    scored(model, tokenizer, make_samples(6))
    assert alive
    assert max(alive) == 0  # the one being contracted is already detached from its parameter


@pytest.mark.parametrize("architecture", ["gptj", "mixtral"])
def test_fewer_tokens_at_once_give_the_same_scores(tokenizer, architecture):
    model, targets = make_model(architecture), find_targets(make_model(architecture))
    encoded = EncodedSamples(make_samples(9), model=model, tokenizer=tokenizer, batch_size=5)
    factors, found, told = FactorStore(model, targets, BLOCKS, budget=1 << 30), [], []
    for tokens in (999, 12):
        asked = room_for(model, tokens)
        scorer = Scorer(model, targets, BLOCKS, factors, advance=told.append)
        with preserved(model):
            scorer.add(encoded.gold_batches())
        found.append(scorer.total)
        assert (max(asked) > tokens) == (tokens == 12)
    for key, score in found[0].items():
        torch.testing.assert_close(found[1][key].grad, score.grad, rtol=1e-3, atol=1e-5 * float(score.grad.abs().max()))
    assert sum(told) == 2 * len(targets) * sum(batch.size for batch in encoded.gold_batches())


def test_memory_that_a_hook_runs_out_of_leaves_no_gradient_behind(model, tokenizer, monkeypatch):
    """A factor that finds no room in the midst of a backward pass: what is done again must not add to what was left."""
    samples, calls = make_samples(6), itertools.count()
    expected = scored(model, tokenizer, samples)

    def full_once(*arguments, **options):
        if next(calls) == 4:
            raise out_of_memory()
        return score_blocks(*arguments, **options)

    monkeypatch.setattr("lasertri.search.scoring.score_blocks", full_once)
    for key, score in scored(model, tokenizer, samples).items():
        scale = float(expected[key].grad.abs().max())
        torch.testing.assert_close(score.grad, expected[key].grad, rtol=1e-3, atol=1e-5 * scale)
    assert all(parameter.grad is None for parameter in model.parameters())


def of_shape(*shape):
    return Target("model.weight", 0, "fc_in", False, shape)


@pytest.mark.parametrize(
    ("shapes", "wanted", "blocks"),
    [
        ([(1536, 576), (576, 1536)], None, 8),
        ([(16384, 4096), (4096, 16384)], None, 16),  # GPT-J-6B
        ([(28672, 8192), (8192, 28672)], None, 32),  # Llama 3 70B
        ([(50000, 1000)], None, 8),  # as many columns at most
        ([(8193, 4096)], None, 16),
        ([(16384, 4096)], 2, 2),
        ([(6, 4096), (16384, 4096)], None, 6),
        ([(128256, 4096), (16384, 4096)], None, 32),
    ],
)
def test_large_models_are_ranked_in_more_blocks(shapes, wanted, blocks):
    assert scoring_blocks([of_shape(*shape) for shape in shapes], wanted) == blocks
