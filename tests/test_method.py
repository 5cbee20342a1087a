"""The whole method on tiny models: it finds what helps, changes nothing, and fails early."""

import copy
import dataclasses
import json
import logging
import random

import numpy as np
import peft
import pytest
import safetensors.torch
import torch
from marks import slow
from tiny import auto_class, make_model, make_samples, make_tokenizer
from transformers import AutoModelForCausalLM

from lasertri import Edit, LasertriError, Objective, Sample, adapt, load_model, load_tokenizer
from lasertri.demo import MODEL_DIR
from lasertri.demo.recall import samples as recall_samples
from lasertri.edit.shrink import Shrink
from lasertri.edit.step import Step
from lasertri.language.samples import EncodedSamples
from lasertri.measure.evaluate import evaluate
from lasertri.method import SEARCHES
from lasertri.result.adaptation import REPORT_NAME, SUMMARY_NAME
from lasertri.search.replay import Replay
from lasertri.support.output_folder import FILES_NAME

SMALL = {"blocks": (1, 3), "ratios": (0.5, 0.1, 0.0), "count": 2, "progress": False}


@pytest.fixture(scope="module")
def demo():
    """The packaged model on its task, with a small grid."""
    return adapt(
        str(MODEL_DIR),
        recall_samples(60, seed=11),
        held_out=recall_samples(200, seed=12),
        blocks=(2,),
        ratios=(0.6, 0.4),
        calibration=60,
        progress=False,
    )


def test_a_real_effect_is_found_accepted_and_holds(demo):
    assert (demo.edit.candidate.target.layer, demo.edit.candidate.target.role) == (0, "fc_in")
    assert demo.rounds[0].decision.p_value <= 0.01
    assert demo.held_out.edited.accuracy >= demo.held_out.baseline.accuracy + 0.25
    assert demo.held_out.verdict == "helps"


def test_the_checkpoint_is_plain_and_gives_the_edited_logits(demo, tmp_path):
    demo.save(tmp_path / "out")
    assert {SUMMARY_NAME, REPORT_NAME, "lasertri_config.json", "lasertri_edit.safetensors"} <= {
        p.name for p in (tmp_path / "out").iterdir()
    }
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    inputs = torch.arange(12).reshape(2, 6)
    with torch.no_grad(), demo.edit.applied(demo.model):
        assert torch.equal(reloaded(inputs).logits, demo.model(inputs).logits)
    applied = copy.deepcopy(demo.model)
    Edit.load(tmp_path / "out").apply(applied)
    with torch.no_grad():
        assert torch.equal(reloaded(inputs).logits, applied(inputs).logits)


def test_reported_figures_are_those_of_a_really_edited_model(demo):
    edited = copy.deepcopy(demo.model)
    demo.edit.apply(edited)
    samples = EncodedSamples(recall_samples(200, seed=12), model=edited, tokenizer=demo.tokenizer)
    assert evaluate(edited, samples).accuracy == demo.held_out.edited.accuracy


def test_without_an_effect_there_is_no_edit_and_no_checkpoint(model, tokenizer, samples, tmp_path):
    result = adapt(model, samples, tokenizer=tokenizer, **SMALL)
    assert result.edit is None
    assert result.held_out.edited is None
    assert result.to_dict()["rejected"]["target"]
    result.save(tmp_path / "out")
    assert {p.name for p in (tmp_path / "out").iterdir()} == {SUMMARY_NAME, REPORT_NAME, FILES_NAME}
    assert "no edit" in str(result)


@pytest.mark.parametrize("interrupted", [False, True])
@pytest.mark.parametrize("architecture", ["gptj", "gpt2", "llama", "phi3", "mixtral"])
def test_the_model_and_the_random_state_are_left_as_they_were(
    model_of, tokenizer, samples, monkeypatch, architecture, interrupted
):
    model = model_of(architecture).train()
    head = model.get_output_embeddings().weight
    head.grad = torch.full_like(head, 3.0)
    next(model.parameters()).requires_grad_(False)
    before, gradients = copy.deepcopy(model), [p.grad for p in model.parameters()]
    hooks = [len(m._forward_hooks) + len(m._backward_hooks) for m in model.modules()]
    states = torch.random.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    if interrupted:
        calls, read = iter(range(7)), Replay.read

        def stop(*arguments):
            if next(calls, None) is None:
                raise KeyboardInterrupt
            return read(*arguments)

        monkeypatch.setattr(Replay, "read", stop)  # an expert's weight is in place
        with pytest.raises(KeyboardInterrupt):
            adapt(model, samples, tokenizer=tokenizer, **SMALL)
    else:
        adapt(model, samples, tokenizer=tokenizer, accept="best", **SMALL)
    assert all(torch.equal(value, before.state_dict()[name]) for name, value in model.state_dict().items())
    assert [m.training for m in model.modules()] == [m.training for m in before.modules()]
    for mine, theirs in zip(model.parameters(), before.parameters(), strict=True):
        assert mine.requires_grad == theirs.requires_grad
        assert not mine._post_accumulate_grad_hooks
    assert all(p.grad is grad for p, grad in zip(model.parameters(), gradients, strict=True))
    assert torch.equal(head.grad, torch.full_like(head, 3.0))
    assert [len(m._forward_hooks) + len(m._backward_hooks) for m in model.modules()] == hooks
    assert torch.equal(torch.random.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_adapt(model_of, tokenizer, samples, tmp_path, dtype):
    model = model_of("llama", dtype=dtype)
    result = adapt(model, samples, tokenizer=tokenizer, accept="best", **SMALL)
    assert result.edit is not None  # of a dozen candidates one beats a random model's baseline
    result.save(tmp_path / "out")
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert reloaded.dtype == dtype
    result.edit.apply(model)
    assert all(torch.equal(a, b) for a, b in zip(reloaded.parameters(), model.parameters(), strict=True))
    result.save(tmp_path / "again")  # applied by now, which makes no difference


def test_a_candidate_that_gives_nan_is_a_failed_trial_not_a_failed_run(model, tokenizer, samples):
    def break_on_zero(module, _, output):
        return output.masked_fill((output == module.bias).all(-1, keepdim=True), torch.nan)

    for layer in model.transformer.h:
        layer.mlp.fc_in.register_forward_hook(break_on_zero)
    result = adapt(model, samples, tokenizer=tokenizer, targets="fc_in", **SMALL).to_dict()
    assert [t["accuracy"] for t in result["trials"] if t["rank"] == 0] == [0, 0]


@pytest.mark.parametrize("architecture", ["gpt_neox", "opt", "qwen3", "gemma2", "phi", "phi3", "bloom"])
def test_other_architectures_adapt(model_of, tokenizer, samples, architecture):
    result = adapt(model_of(architecture), samples, tokenizer=tokenizer, accept="best", **SMALL)
    assert len(result.rounds[0].ranking) in (6, 9)
    assert result.to_dict()["candidates"]["requested"] == 2 * 2 * 3


@pytest.mark.parametrize("architecture", ["roberta", "t5"])
def test_masked_models_and_encoder_decoders_adapt(samples, tmp_path, architecture):
    make_model(architecture).save_pretrained(tmp_path / "base")
    make_tokenizer(architecture).save_pretrained(tmp_path / "base")
    model, tokenizer = load_model(tmp_path / "base", device="cpu"), load_tokenizer(tmp_path / "base")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    result = adapt(model, samples, tokenizer=tokenizer, accept="best", **SMALL | {"count": 6})
    assert result.edit is not None
    result.save(tmp_path / "out")
    report = (tmp_path / "out" / REPORT_NAME).read_text()
    assert ("layer of encoder.block, then decoder.block" in report) == (architecture == "t5")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    Edit.load(tmp_path / "out").apply(model)
    encoded = EncodedSamples(samples, model=model, tokenizer=tokenizer)
    for reloaded in (auto_class(architecture).from_pretrained(tmp_path / "out"), load_model(tmp_path / "out")):
        assert type(reloaded) is type(model)
        assert all(torch.equal(a, b) for a, b in zip(reloaded.parameters(), model.parameters(), strict=True))
        assert evaluate(reloaded.cpu().eval(), encoded).log_loss == evaluate(model, encoded).log_loss
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {result.edit.candidate.target.name}


def test_further_edits_are_of_other_matrices_and_all_are_applied(model_of, tokenizer, samples, tmp_path):
    model = model_of("gptj")
    result = adapt(model, samples, tokenizer=tokenizer, accept="best", max_edits=3, **SMALL)
    assert len({edit.candidate.target for edit in result.edits}) == len(result.edits) >= 2
    edited = copy.deepcopy(model)
    for edit in result.edits:
        edit.apply(edited)
    encoded = EncodedSamples(samples, model=edited, tokenizer=tokenizer)
    before, after = evaluate(model, encoded), evaluate(edited, encoded)
    assert before.log_loss != after.log_loss
    accuracies = [found.decision.accepted.measurement.accuracy for found in result.rounds if found.edit]
    assert accuracies == sorted(accuracies)
    assert result.calibration.edited.accuracy == accuracies[-1]
    result.save(tmp_path / "out")
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert all(torch.equal(a, b) for a, b in zip(reloaded.parameters(), edited.parameters(), strict=True))
    assert torch.equal(Edit.load(tmp_path / "out" / "edit-2").weight, result.edits[1].weight)
    assert "further edit: " in str(result)


@pytest.mark.parametrize("architecture", ["phi3", slow("mixtral"), "qwen2_moe", slow("qwen3_moe")])
def test_a_checkpoint_with_an_edited_part_loads_bit_for_bit(model_of, tokenizer, samples, tmp_path, architecture):
    model = model_of(architecture)
    options = SMALL | {"count": 12, "accept": "best", "targets": r"experts|gate_up_proj"}
    result = adapt(model, samples, tokenizer=tokenizer, **options)
    assert result.edit.candidate.target.rows or result.edit.candidate.target.expert is not None
    result.save(tmp_path / "out")
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    Edit.load(tmp_path / "out").apply(model)
    for (name, mine), theirs in zip(model.named_parameters(), reloaded.parameters(), strict=True):
        assert torch.equal(mine, theirs), name


def test_the_same_seed_gives_the_same_result(model, tokenizer, samples):
    first, second = (adapt(model, samples, tokenizer=tokenizer, **SMALL).to_dict() for _ in range(2))
    for result in (first, second):
        for name in ("seconds", "seconds_by_phase"):
            result.pop(name)
        for trial in [*result["trials"], result["rejected"]]:
            trial.pop("seconds")
    assert first == second


def test_completions_and_groups(model, tokenizer):
    samples = [Sample(s.prompt, "yes", group=str(i // 2)) for i, s in enumerate(make_samples(48))]
    result = adapt(model, samples, tokenizer=tokenizer, **SMALL)
    assert result.calibration.baseline.balanced_accuracy is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blocks": (41,)}, "a number of blocks K of at most 40"),
        ({"ratios": (1.5,)}, "expected ratios from 0 to 1, got 1.5"),
        ({"score": "magic"}, "expected score among"),
        ({"accept": "maybe"}, "expected accept among"),
        ({"count": 0}, "expected count of at least 1"),
        ({"count": 2.5}, "expected count as a whole number, got 2.5"),
        ({"race": "no"}, "expected race as True or False, got 'no'"),
        ({"cuont": 3}, "expected an option of adapt, got 'cuont'; did you mean 'count'?"),
        ({"calibration": 19}, "expected calibration of at least 20, got 19"),
        ({"backend": "warp"}, "expected backend among"),
        ({"targets": "nowhere"}, "match 'nowhere', got none among transformer"),
        ({"targets": "nowhere", "edit": "truncate"}, "saw 3 ×"),
        ({"memory_budget": 1}, "memory budget of at least"),
    ],
)
def test_options_that_cannot_work_fail_before_any_forward_pass(model, tokenizer, samples, options, message):
    model.forward = None  # calling it would be another error
    with pytest.raises(LasertriError, match=message):
        adapt(model, samples, tokenizer=tokenizer, progress=False, **options)


def test_nan_weights_are_named(model, tokenizer, samples):
    with torch.no_grad():
        model.transformer.h[0].mlp.fc_in.weight[3, 4] = torch.nan
    with pytest.raises(LasertriError, match=r"NaN or Inf in transformer\.h\.0\.mlp\.fc_in\.weight"):
        adapt(model, samples, tokenizer=tokenizer, **SMALL)


@pytest.mark.parametrize("options", [{"edit": "step"}, {"edit": "shrink"}, {"edit": "truncate"}, {"score": "taylor"}])
@pytest.mark.parametrize(
    ("dtype", "advice"),
    [(torch.float32, "a function of the model has none"), (torch.bfloat16, "load the model in float32")],
)
def test_a_gradient_that_is_not_finite_where_the_outputs_are_is_said_with_its_layer(tokenizer, options, dtype, advice):
    model = make_model("gptj", dtype=dtype)
    model.transformer.h[1].mlp.fc_out.register_full_backward_hook(lambda _, inputs, __: (inputs[0] * torch.nan,))
    with pytest.raises(
        LasertriError, match=rf"expected finite gradients .* got NaN or Inf .* transformer\.h\.1\.mlp\.fc_in.*{advice}"
    ):
        adapt(model, make_samples(48), tokenizer=tokenizer, progress=False, **options)


def overflowing(word):
    """A model whose outputs are not finite after one word, though its weights are."""
    model, tokenizer = make_model("gptj"), make_tokenizer()
    with torch.no_grad():
        model.transformer.wte.weight[tokenizer.convert_tokens_to_ids(word)] = 3e38
    return model, tokenizer


def rows(count, start, word=None):
    """Samples of which the sixth has a word that no other has."""
    found = [dataclasses.replace(s, source=f"rows:{start + i}") for i, s in enumerate(make_samples(count))]
    found = [
        dataclasses.replace(s, prompt=s.prompt.replace("z", "y"), group=f"{start}-{i}") for i, s in enumerate(found)
    ]
    if word is not None:
        found[5] = dataclasses.replace(found[5], prompt=f"a {word}")
    return found


@pytest.mark.parametrize("edit", ["step", "shrink", "truncate"])
def test_a_calibration_sample_with_outputs_that_are_not_finite_is_named(edit):
    model, tokenizer = overflowing("z")
    options = {"edit": edit, "batch_size": 3, "progress": False} | ({"calibration": 30} if edit == "truncate" else {})
    with pytest.raises(
        LasertriError, match=r"finite outputs of the model, got NaN or Inf for rows:105 \('a z'\); leave"
    ):
        adapt(model, rows(30, 100, "z"), held_out=rows(20, 200), tokenizer=tokenizer, **options)


@pytest.mark.parametrize("edit", ["step", "truncate"])
def test_a_held_out_sample_with_outputs_that_are_not_finite_costs_its_figures_alone(edit, tmp_path, caplog):
    model, tokenizer = overflowing("z")
    options = {"blocks": (1,), "ratios": (0.5,), "count": 1} if edit == "truncate" else {"direction": "plain"}
    result = adapt(
        model, rows(40, 100), held_out=rows(20, 200, "z"), tokenizer=tokenizer, batch_size=3, edit=edit,
        accept="best", progress=False, **options,
    )  # fmt: skip
    assert result.held_out is None
    assert result.refused.startswith(
        "no held-out figures: expected finite outputs of the model, got NaN or Inf for rows:205"
    )
    assert result.refused in caplog.text
    assert result.rounds[0].trials
    assert result.edit is not None
    assert result.calibration.edited is not None
    assert result.refused in str(result)
    result.save(tmp_path / "out")
    summary = json.loads((tmp_path / "out" / SUMMARY_NAME).read_text())
    assert (summary["held_out"], summary["refused"]) == (None, result.refused)
    assert "rows:205" in (tmp_path / "out" / REPORT_NAME).read_text()


def test_a_model_without_a_tokenizer_asks_for_one(model, samples):
    with pytest.raises(LasertriError, match="pass tokenizer="):
        adapt(model, samples, **SMALL)


def test_blocks_that_a_target_has_no_rows_for_are_left_out(model, tokenizer, samples, caplog):
    with caplog.at_level(logging.WARNING):
        result = adapt(model, samples, tokenizer=tokenizer, **SMALL | {"blocks": (1, 17), "count": 6})
    assert "9 candidates are left out: they have more blocks than rows" in caplog.text
    tried = {(trial.candidate.target.shape[0], trial.candidate.blocks) for trial in result.rounds[0].trials}
    assert tried == {(16, 1), (40, 1), (40, 17)}


def test_held_out_samples_are_encoded_before_the_work(model, tokenizer, samples, monkeypatch):
    monkeypatch.setitem(SEARCHES, "truncate", lambda *_: pytest.fail("searched"))
    long = [Sample("a " * 80, choices=("yes", "no"), label=0) for _ in range(30)]
    with pytest.raises(LasertriError, match="at most 64 tokens"):
        adapt(model, samples, held_out=long, tokenizer=tokenizer, **SMALL)


def test_a_model_without_a_head_asks_for_an_objective(model, tokenizer, samples):
    with pytest.raises(LasertriError, match="a language model of transformers, got a GPTJModel; say with objective="):
        adapt(model.transformer, samples, tokenizer=tokenizer, **SMALL)


def test_arguments_of_other_kinds_are_refused(model, tokenizer, samples):
    with pytest.raises(LasertriError, match="expected a model, or a hub id or folder to load it from, got 5"):
        adapt(5, samples)
    with pytest.raises(LasertriError, match="expected a tokenizer of transformers, got 'gpt2'; load it by"):
        adapt(model, samples, tokenizer="gpt2")
    with pytest.raises(LasertriError, match=r"expected objective=Objective\(forward, loss, score\), got 'loss'"):
        adapt(model, samples, tokenizer=tokenizer, objective="loss")


# steps, and shrink

STEP = {"edit": "step", "progress": False}


def learnable():
    """Samples whose answer is often the same: what any step can learn."""
    return [
        Sample(sample.prompt, choices=("yes", "no"), label=int(i % 5 == 0), group=str(i))
        for i, sample in enumerate(make_samples(60))
    ]


def choice_loss(model, tokenizer, samples):
    with torch.no_grad():
        encoded = EncodedSamples(samples, model=model, tokenizer=tokenizer)
        return encoded.read(model).sample_losses().mean()


@pytest.mark.parametrize("architecture", ["gptj", "gpt2", "roberta", "t5"])
def test_a_step_helps_and_is_saved_as_an_adapter_that_peft_loads(architecture, tmp_path):
    model, tokenizer, samples = make_model(architecture), make_tokenizer(architecture), learnable()
    before = copy.deepcopy(model)
    result = adapt(model, samples, tokenizer=tokenizer, accept="best", **STEP)
    assert all(torch.equal(value, before.state_dict()[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert isinstance(result.edit, Step)
    assert result.rounds[0].decision.accepted.loss < choice_loss(model, tokenizer, samples)
    assert result.held_out.edited.losses.mean() < result.held_out.baseline.losses.mean()
    described = result.to_dict()
    assert described["edit"]["kind"] == "step"
    assert described["candidates"]["measured"] == len(described["trials"]) >= 4
    assert {trial["direction"] for trial in described["trials"]} == {"plain", "whitened"}
    result.save(tmp_path / "out")
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert {SUMMARY_NAME, REPORT_NAME, "adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= files
    assert "model.safetensors" not in files
    before.save_pretrained(tmp_path / "base")
    base = auto_class(architecture).from_pretrained(tmp_path / "base")
    adapted = peft.PeftModel.from_pretrained(base, tmp_path / "out").eval()
    held_out = EncodedSamples(samples, model=model, tokenizer=tokenizer)
    with result.edit.applied(model):
        expected = evaluate(model, held_out)
    found = evaluate(base, held_out)
    assert adapted.peft_config["default"].r == 16 or architecture != "gptj"
    assert found.log_loss == pytest.approx(expected.log_loss, abs=1e-5)
    assert found.log_loss != pytest.approx(result.calibration.baseline.log_loss, abs=1e-3)
    loaded = Edit.load(tmp_path / "out")
    with loaded.applied(model):
        assert evaluate(model, held_out).log_loss == pytest.approx(expected.log_loss, abs=1e-5)


@pytest.mark.parametrize("architecture", ["mixtral", slow("qwen3_moe"), slow("llama4_text")])
@pytest.mark.parametrize("kind", ["step", slow("shrink")])
@pytest.mark.parametrize("dtype", [torch.float32, slow(torch.bfloat16)])
def test_experts_are_edited_with_all_layers(architecture, kind, dtype, tmp_path, caplog):
    model, tokenizer, samples = make_model(architecture, dtype=dtype), make_tokenizer(), learnable()
    before, how = copy.deepcopy(model.state_dict()), model.config._experts_implementation
    result = adapt(model, samples, tokenizer=tokenizer, accept="best", edit=kind, targets=".", progress=False)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.config._experts_implementation == how
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    experts = {target for target in result.edit.targets if target.expert is not None}
    assert {(target.layer, target.expert) for target in experts} >= {(2, expert) for expert in range(3)}
    assert len(experts) < len(result.edit.targets)
    assert result.held_out.edited.losses.mean() < result.held_out.baseline.losses.mean()
    result.save(tmp_path / "out")  # which compares it by plain peft
    held_out = EncodedSamples(samples, model=model, tokenizer=tokenizer)
    with result.edit.applied(model):
        expected = evaluate(model, held_out).log_loss
    with Edit.load(tmp_path / "out").applied(model):
        assert evaluate(model, held_out).log_loss == pytest.approx(expected, abs=1e-5 if dtype.itemsize > 2 else 0.02)


def test_experts_that_no_sample_reaches_are_named(tokenizer, monkeypatch):
    model = make_model("mixtral")
    router = type(model.model.layers[0].mlp.gate)
    chosen = router.forward
    monkeypatch.setattr(router, "forward", lambda self, x: (*(out := chosen(self, x))[:2], out[2] % 2))
    with pytest.raises(LasertriError, match=r"expected tokens for model\.layers\.0\.mlp\.experts\.gate_up_proj\.2 or"):
        adapt(model, learnable(), tokenizer=tokenizer, targets=r"experts\..*\.2", **STEP)


def test_experts_that_peft_cannot_adapt_are_told_before_the_search(tokenizer, monkeypatch):
    monkeypatch.setattr("lasertri.method.SEARCHES", {})
    with pytest.raises(LasertriError, match=r"expected experts that peft can adapt, got model\.layers\.2"):
        adapt(make_model("aria_text", moe_num_experts=1, moe_topk=1), learnable(), tokenizer=tokenizer, **STEP)


def test_a_merged_step_is_a_plain_checkpoint_with_its_adapter_beside(model, tokenizer, tmp_path):
    samples = learnable()
    result = adapt(model, samples, tokenizer=tokenizer, accept="best", merge=True, progress=False)
    result.save(tmp_path / "out")
    assert "adapter_config.json" not in {path.name for path in (tmp_path / "out").iterdir()}
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert type(reloaded) is type(model)
    encoded = EncodedSamples(samples, model=model, tokenizer=tokenizer)
    merged = evaluate(reloaded, encoded).log_loss
    with result.edit.applied(model):
        assert evaluate(model, encoded).log_loss == merged
    loaded = Edit.load(tmp_path / "out" / "adapter")
    assert not loaded.merge
    with loaded.applied(model):
        assert evaluate(model, encoded).log_loss == pytest.approx(merged, abs=1e-4)
    peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path / "out" / "adapter")


def test_singular_values_shrink_and_are_saved_in_a_checkpoint(model, tokenizer, tmp_path):
    samples = learnable()
    for blocks in (1, 3):
        result = adapt(model, samples, tokenizer=tokenizer, accept="best", edit="shrink", blocks=blocks, progress=False)
        assert isinstance(result.edit, Shrink)
        assert {len(change) for change in result.edit.changes.values()} == {blocks}
        assert result.rounds[0].decision.accepted.loss < choice_loss(model, tokenizer, samples)
    result.save(tmp_path / "out")
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    edited = copy.deepcopy(model)
    Edit.load(tmp_path / "out").apply(edited)
    for mine, theirs in zip(edited.parameters(), reloaded.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["step", "shrink"])
def test_any_module_takes_a_step_by_an_objective(kind, tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(6, 9), torch.nn.Tanh(), torch.nn.Linear(9, 2))
        x = torch.randn(90, 6)
    samples = list(zip(x, (x[:, 0] > 0).long(), strict=True))

    def labels(batch):
        return torch.stack([y for _, y in batch])

    objective = Objective(
        lambda model, batch: model(torch.stack([x for x, _ in batch])),
        lambda out, batch: torch.nn.functional.cross_entropy(out, labels(batch), reduction="none"),
        lambda out, batch: out.argmax(-1) == labels(batch),
    )
    result = adapt(model, samples, objective=objective, accept="best", edit=kind, progress=False)
    assert result.edit.to_dict()["kind"] == kind
    assert result.held_out.edited.log_loss < result.held_out.baseline.log_loss
    result.save(tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert ("adapter_model.safetensors" in names) == (kind == "step")
    assert ("model.safetensors" in names) == (kind == "shrink")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("direction", ["plain", "whitened"])
def test_half_precision_models_take_steps(dtype, direction, tmp_path):
    model, tokenizer = make_model("llama", dtype=dtype), make_tokenizer()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    result = adapt(model, learnable(), tokenizer=tokenizer, accept="best", direction=direction, progress=False)
    assert {side.dtype for pair in result.edit.factors.values() for side in pair} == {torch.float32}
    assert result.held_out.edited.losses.mean() < result.held_out.baseline.losses.mean()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    result.save(tmp_path / "out")
    stored = safetensors.torch.load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32}


def test_a_prompt_of_one_token_gives_queries_no_gradient_and_no_trouble(tokenizer):
    model = make_model("llama")
    samples = [Sample(letter, choices=("yes", "no"), label=0) for letter in "abcdefghijklmnopqrstuvwxyz"]
    samples += [dataclasses.replace(sample, prompt=f"<unk> {sample.prompt}") for sample in samples]
    result = adapt(model, samples, tokenizer=tokenizer, accept="best", targets="[qk]_proj", **STEP)
    assert result.rounds[0].trials
    only = [
        Sample(a, choices=("yes", "no"), label=0, group=str(i)) for i, a in enumerate([*"abcdefghijklmnopqrst"] * 2)
    ]
    result = adapt(model, only, tokenizer=tokenizer, accept="best", targets="k_proj", **STEP)
    assert result.edit is None  # nothing is left to change


@pytest.mark.slow
def test_random_answers_are_hardly_ever_accepted():
    """From samples to the decision, on a model with opinions: at most the 99 % bound of binomial(100, .05)."""
    model, tokenizer, accepted = make_model("gptj", n_layer=1), make_tokenizer(), 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        samples = [
            Sample(
                " ".join(rng.choice([*"abcdefghijklmnop"], 4)), choices=("yes", "no"), label=int(label), group=str(i)
            )
            for i, label in enumerate(rng.integers(2, size=40))
        ]
        options = {"held_out": samples[:1], "seed": seed, "calibration": 40, "batch_size": 64}
        own = [dataclasses.replace(sample, group=f"calibration {sample.group}") for sample in samples]
        result = adapt(model, own, tokenizer=tokenizer, **options, **STEP)
        accepted += result.edit is not None
    assert accepted <= 11


# what ends a search, and what confirms its winner


def right_answers(model, tokenizer, samples):
    """The same samples, their labels what the model answers."""
    with torch.no_grad():
        correct, _ = EncodedSamples(samples, model=model, tokenizer=tokenizer).read(model).outcomes()
    labels = [s.label if right else 1 - s.label for s, right in zip(samples, correct, strict=True)]
    return [dataclasses.replace(s, label=label) for s, label in zip(samples, labels, strict=True)]


@pytest.mark.parametrize("kind", ["truncate", "step", "shrink"])
def test_where_nothing_can_help_a_search_ends_and_says_so(kind, model, tokenizer, samples, tmp_path, monkeypatch):
    for name in ("lasertri.method.ranked", "lasertri.search.step_search.gather_parts"):
        monkeypatch.setattr(name, lambda *_, **__: pytest.fail("searched"))
    monkeypatch.setattr("lasertri.search.outlook.SURE", 100.0)
    own = right_answers(model, tokenizer, samples)
    result = adapt(model, own, tokenizer=tokenizer, edit=kind, progress=False)
    described = result.to_dict()
    assert "none is answered wrongly" in described["reason"]
    nothing = {"edit": None, "rejected": None, "p_value": None, "trials": [], "scores": [], "confirmation": None}
    assert described | nothing == described
    assert str(result).splitlines()[1:4] == ["nothing was tried", "no edit", f"  {described['reason']}"]
    result.save(tmp_path / "out")
    page = (tmp_path / "out" / REPORT_NAME).read_text()
    assert described["reason"][1:] in page
    assert "Best rejected" not in page
    assert "Every" not in page


def test_a_winner_is_confirmed_on_fresh_samples(demo, tmp_path):
    fresh = {"blocks": (2,), "ratios": (0.6, 0.4), "calibration": 60, "progress": False}
    data = {"held_out": recall_samples(100, seed=12), **fresh}
    result = adapt(str(MODEL_DIR), recall_samples(140, seed=11), **data)
    decision = result.rounds[0].decision
    assert decision.accepted is not None
    assert decision.confirmation.comparison.baseline.n == 80
    assert decision.confirmation.comparison.edited.accuracy > decision.confirmation.comparison.baseline.accuracy + 0.2
    assert result.to_dict()["confirmation"]["p_value"] < 0.001
    assert "confirmation, 80 samples\n" in str(result)
    result.save(tmp_path / "out")
    assert ">confirmation, 80<" in (tmp_path / "out" / REPORT_NAME).read_text()
    assert demo.to_dict()["confirmation"] is None  # all of its rows calibrate
