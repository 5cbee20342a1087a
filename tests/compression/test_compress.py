"""Compression keeps the bytes that were asked for, where they lose least, and leaves alone what it would not help."""

import copy
import functools
import json
import os

import pytest
import torch
from faults import give_up_on
from killing import WHENS, Killed, Killer
from marks import slow
from tiny import make_tokenizer
from typer.testing import CliRunner

import lasertri
import lasertri.compression.compress as compression
from lasertri import LasertriError, compress
from lasertri.cli import app
from lasertri.compression.moments import InputMoments
from lasertri.factored.layer import FactoredLinear
from lasertri.language.text import EncodedText
from lasertri.measure.side_effects import side_effects
from lasertri.model.targets import find_targets

INPUTS = torch.arange(12).reshape(2, 6)
TEXT = " ".join(["yes no a b c d e f g h i j k l m n o p q r s t u v w x y z"] * 20)


@pytest.fixture
def english(monkeypatch):
    """The tiny models' words as neutral text; of the real one they know next to nothing."""
    monkeypatch.setattr(compression, "neutral_text", lambda: TEXT)


def decaying(model):
    """The same model with weights whose singular values fall, as those of trained models do."""
    for target in find_targets(model, "."):
        stored = target.parameter(model)
        u, s, vh = torch.linalg.svd(stored.detach().double(), full_matrices=False)
        with torch.no_grad():
            stored.copy_((u * (s[0] * 0.6 ** torch.arange(len(s)))) @ vh)
    return model


def squeezed(model, name="gptj", **options):
    return compress(model, **{"tokenizer": make_tokenizer(name), "text": TEXT, "progress": False} | options)


def bytes_of(report, model):
    sizes = [(target.parameter(model).element_size(), m) for m in report.matrices for target in [m.target]]
    return tuple(sum(width * matrix.parameters[i] for width, matrix in sizes) for i in (0, 1))


@pytest.mark.parametrize("factors", ["whitened", "plain"])
@pytest.mark.parametrize(
    ("architecture", "blocks"), [("gptj", 1), ("gpt2", 3), ("llama", 2), ("roberta", 1), ("t5", 1)]
)
def test_the_bytes_asked_for_are_kept_and_every_factor_is_smaller(model_of, architecture, blocks, factors):
    model = decaying(model_of(architecture))
    before = copy.deepcopy(model)
    report = squeezed(model, architecture, keep=0.6, factors=factors, blocks=blocks)
    was, now = bytes_of(report, before)
    assert 0.55 * was < now <= 0.6 * was
    assert report.bytes[0] - report.bytes[1] == was - now
    for matrix in report.matrices:
        weight, product = matrix.target.view(matrix.target.parameter(before)), weight_of(model, matrix)
        assert matrix.parameters[1] <= matrix.parameters[0]
        assert matrix.error == pytest.approx(float((weight - product).norm() / weight.norm()), abs=1e-6)
        assert (matrix.output_error is not None) == (factors == "whitened" and matrix.factored)


def weight_of(model, matrix):
    layer = model.get_submodule(str(matrix.target))
    return layer.product(torch.float32) if matrix.factored else matrix.target.view(layer.weight)


def output_errors(model, report, before, text):
    """‖X(A − A_k)ᵀ‖² over ‖XAᵀ‖² of every matrix, on the text that its factors were made for."""
    moments = InputMoments(before, [matrix.target for matrix in report.matrices], text.calibration)
    for matrix in report.matrices:
        weight, product = matrix.target.view(matrix.target.parameter(before)), weight_of(model, matrix)
        moment = moments.of(matrix.target)
        lost, whole = (float(((a @ moment) * a).sum()) for a in (weight.double() - product.double(), weight.double()))
        yield lost / whole


def test_whitened_factors_lose_less_of_the_outputs_at_the_same_rank(model_of):
    errors = {}
    for factors in ("plain", "whitened"):
        model = decaying(model_of("llama"))
        before = copy.deepcopy(model)
        report = squeezed(model, rank=0.25, factors=factors)
        text = EncodedText(TEXT, model=before, tokenizer=make_tokenizer())
        errors[factors] = list(output_errors(model, report, before, text))
        if factors == "whitened":  # what is said of them is what is seen, but for the damping
            said = [matrix.output_error**2 for matrix in report.matrices]
            assert said == pytest.approx(errors[factors], rel=0.2, abs=0.01)
    assert all(w <= p for w, p in zip(errors["whitened"], errors["plain"], strict=True))
    assert sum(errors["whitened"]) < 0.9 * sum(errors["plain"])


def test_side_effects_are_those_of_the_model_before_and_after_on_text_held_out(model):
    decaying(model)
    text = EncodedText(TEXT, model=model, tokenizer=make_tokenizer())
    before = text.read(model)
    report = squeezed(model, keep=0.5)
    expected = side_effects(before, text.read(model))
    assert report.side_effects == expected
    assert report.side_effects.kl > 0
    assert f"mean KL {expected.kl:.4g} nats" in str(report)
    assert report.to_dict()["side_effects"]["kl"] == expected.kl


@pytest.mark.parametrize("factors", ["whitened", "plain"])
def test_predictions_that_move_too_far_change_nothing(model, factors):
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(LasertriError, match=r"mean KL of 1e-06 nats, got mean KL"):
        squeezed(model, keep=0.5, max_kl=1e-6, factors=factors)
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    assert squeezed(model, keep=0.5, max_kl=100, factors=factors).count > 0


def test_a_small_memory_budget_gives_the_same(model_of, caplog):
    reports = [squeezed(decaying(model_of("llama")), keep=0.6, memory_budget=b) for b in (95_000, 4 << 30)]
    assert caplog.text.count("memory budget does not hold the factors of all targets") == 1
    assert [m.ranks for m in reports[0].matrices] == [m.ranks for m in reports[1].matrices]
    assert reports[0].side_effects.kl == pytest.approx(reports[1].side_effects.kl)


def test_a_layer_that_the_text_does_not_reach_stays_as_it_is(model):
    decaying(model)
    with torch.no_grad():  # nothing of it comes out, so no gradient comes back
        model.transformer.h[1].mlp.fc_out.weight.zero_()
    report = squeezed(model, keep=0.3, targets=r"mlp\.fc_in")
    assert [matrix.factored for matrix in report.matrices] == [True, False, True]


def test_without_a_tokenizer_factors_are_plain_and_nothing_is_measured(model):
    report = compress(decaying(model), factors="plain", progress=False)
    assert (report.factors, report.side_effects) == ("plain", None)
    assert "not measured" in str(report)
    for options in ({}, {"factors": "plain", "max_kl": 0.1}):
        with pytest.raises(LasertriError, match="expected a tokenizer to run text with"):
            compress(model, progress=False, **options)


def test_the_default_is_the_neutral_text(model_of, english):
    own, named = (squeezed(decaying(model_of("gptj")), text=text) for text in (None, TEXT))
    assert own.to_dict() == named.to_dict()


def test_a_share_of_the_rank(model):
    report = squeezed(model, rank=0.3, targets=r"mlp\.fc_in", blocks=3)
    assert [matrix.ranks for matrix in report.matrices] == [(4, 3, 3)] * 3  # int(min(b, n) 0.3) of 14, 13, 13 rows


def test_what_would_not_get_smaller_is_left_bit_for_bit(model):
    before = copy.deepcopy(model.state_dict())
    report = squeezed(model, keep=1.0)
    assert report.count == report.error == 0
    assert report.parameters[0] == report.parameters[1]
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())


def test_blocks_that_do_not_pay_keep_their_rows(model):
    target = find_targets(model, r"h\.1\.mlp\.fc_in")[0]
    with torch.no_grad():  # the first of two blocks has rank 1
        target.parameter(model)[:20] = torch.outer(torch.arange(1.0, 21.0), torch.ones(16))
    rows = target.parameter(model).detach()[20:].clone()
    report = compress(model, keep=0.7, targets=r"h\.1\.mlp\.fc_in", blocks=2, factors="plain", progress=False)
    assert report.matrices[0].ranks == (1, None)
    assert model.get_submodule(str(target)).product(torch.float32)[20:].equal(rows)


def test_a_zero_block_has_rank_zero(model):
    with torch.no_grad():
        model.transformer.h[0].mlp.fc_out.weight.zero_()
    report = compress(model, targets=r"h\.0\.mlp\.fc_out", factors="plain", progress=False)
    assert (report.matrices[0].ranks, report.error) == ((0,), 0)


def test_sizes_are_those_of_the_model(model_of, tmp_path):
    model = decaying(model_of("llama", dtype=torch.bfloat16, hidden_size=64))
    lasertri.save(model, tmp_path / "before")
    report = squeezed(model, keep=0.6, targets=".")
    assert report.bytes[1] == sum(p.nbytes for p in model.parameters()) < report.bytes[0]
    assert report.parameters[1] == sum(p.numel() for p in model.parameters())
    saved = report.parameters[0] - report.parameters[1]
    assert saved == sum(matrix.parameters[0] - matrix.parameters[1] for matrix in report.matrices)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    lasertri.save(model, tmp_path / "after")
    sizes = [sum(p.stat().st_size for p in (tmp_path / name).glob("model*")) for name in ("before", "after")]
    assert sizes[0] - sizes[1] > 0.5 * (report.bytes[0] - report.bytes[1])  # tiny tensors: headers count
    loaded = lasertri.load(tmp_path / "after")
    assert loaded(INPUTS).logits.equal(model(INPUTS).logits)
    assert loaded.generate(INPUTS, max_new_tokens=3, do_sample=False, pad_token_id=1).shape == (2, 9)
    assert f"{report.count} of {len(report.matrices)} matrices factored" in str(report)


def test_shared_weights_are_no_targets(model_of):
    model = model_of("llama", tie_word_embeddings=True)
    with pytest.raises(LasertriError, match="expected a module path that matches 'lm_head'"):
        squeezed(model, targets="lm_head")


def test_a_failure_leaves_the_model_as_it_was(model, monkeypatch):
    decaying(model)
    calls = iter(range(2))
    factored = compression.factored

    def stop(*arguments, **options):
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return factored(*arguments, **options)

    monkeypatch.setattr("lasertri.compression.compress.factored", stop)
    with pytest.raises(KeyboardInterrupt):
        squeezed(model, keep=0.3)
    assert not any(isinstance(module, FactoredLinear) for module in model.modules())


@pytest.mark.parametrize(("when", "at"), [("torn", 4), *(slow(when, 1 if when == "after" else 2) for when in WHENS)])
def test_killed_at_any_moment_it_goes_on_where_it_was(model_of, tmp_path, monkeypatch, when, at):
    killer, gathered = Killer(monkeypatch), []
    gather = InputMoments._gathered
    monkeypatch.setattr(InputMoments, "_gathered", lambda self, group: gathered.append(group) or gather(self, group))

    def work(folder=None, **options):
        model = decaying(model_of("llama"))
        return squeezed(model, keep=0.6, journal=folder, **options), model

    report, model = work()
    (again, other), times = killer.until_it_ends(functools.partial(work, tmp_path), at, when)
    assert times >= 3
    assert again.to_dict() == report.to_dict()
    assert all(value.equal(other.state_dict()[name]) for name, value in model.state_dict().items())
    gathered.clear()
    smaller, _ = work(tmp_path, memory_budget=95_000)  # whose factors are asked for again and again
    assert smaller.side_effects == report.side_effects
    assert gathered == []
    work(tmp_path, text=TEXT.replace("yes", "no"))
    assert gathered
    smaller.journal.delete()
    again.journal.delete()
    gathered.clear()
    work(tmp_path)
    assert gathered


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": 0.9, "rank": 0.5}, "got both"),
        ({"keep": 1.5}, "keep as a share from 0 to 1, got 1.5"),
        ({"keep": float("nan")}, "keep as a share"),
        ({"keep": True}, "keep as a share from 0 to 1, got True"),
        ({"rank": "0.5"}, "rank as a share from 0 to 1, got '0.5'"),
        ({"max_kl": [1]}, r"max_kl of at least 0, got \[1\]"),
        ({"rank": 0.5, "targets": 5}, "a regular expression for the targets, got 5"),
        ({"rank": 64}, "rank as a share from 0 to 1"),
        ({"factors": "white"}, r"\['whitened', 'plain'\], got 'white'"),
        ({"max_kl": -1}, "max_kl of at least 0"),
        ({"text": True}, "expected a text as str, got True"),
        ({"tokenizer": 5}, "expected a tokenizer of transformers, got 5"),
        ({"text": "a b c"}, "expected a text of at least 384 tokens"),
        ({"rank": 0.5, "blocks": 17}, "expected between 1 and 16 blocks"),
        ({"rank": 0.5, "memory_budget": 1}, "memory budget of at least"),
        ({"rank": 0.5, "targets": "nowhere"}, "saw 3 ×"),
    ],
)
def test_options_that_cannot_work_fail_first(model, options, message):
    with pytest.raises(LasertriError, match=message):
        squeezed(model, **options)


def test_what_is_no_model_is_refused():
    with pytest.raises(LasertriError, match="expected a model of transformers, got 5; load it by load_model"):
        squeezed(5)


def test_nan_weights_are_named(model):
    with torch.no_grad():
        model.transformer.h[2].mlp.fc_in.weight[3, 4] = torch.nan
    with pytest.raises(LasertriError, match=r"NaN or Inf in transformer\.h\.2\.mlp\.fc_in"):
        squeezed(model)


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_the_command_writes_what_it_reports(folder, tmp_path, english):
    arguments = ["compress", folder, "--rank", "0.2", "--targets", "fc_in", "--blocks", "2"]
    result = run(*arguments, "-o", tmp_path / "out", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["factored"], found["output"]) == (3, str(tmp_path / "out"))
    loaded = lasertri.load(tmp_path / "out")
    assert sum(p.nbytes for p in loaded.parameters()) == found["bytes"]["after"] < found["bytes"]["before"]
    result = run(*arguments, "-o", tmp_path / "out")
    assert (result.exit_code, "--overwrite" in result.stderr) == (1, True)
    result = run(*arguments, "-o", tmp_path / "out", "--overwrite")
    assert (result.exit_code, "3 of 3 matrices factored" in result.stdout) == (0, True)


def test_the_command_goes_on_where_it_was_killed_and_then_forgets(folder, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("LASERTRI_CACHE", str(tmp_path / "cache"))
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    killer = Killer(monkeypatch)
    killer.at = 3
    command = ["compress", folder, "--text", tmp_path / "text.txt", "--keep", "0.6", "-o", tmp_path / "out"]
    with pytest.raises(Killed):
        run(*command)
    killer.at = None
    assert run(*command).exit_code == 0
    assert "going on where this was stopped: 1 s of sensitivity and factors are there already" in caplog.text
    assert os.listdir(tmp_path / "cache") == []


def test_the_command_writes_nothing_where_nothing_gets_smaller(folder, tmp_path, english):
    result = run("compress", folder, "--keep", "1", "-o", tmp_path / "out")
    assert result.exit_code == 0
    assert "nothing written" in result.stderr
    assert not (tmp_path / "out").exists()


def test_the_command_says_once_what_is_left_out(model_of, tokenizer, tmp_path, english, monkeypatch, caplog):
    model_of("qwen3_moe").save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    monkeypatch.setattr("lasertri.model.targets._stacks", lambda _: {})  # gate and up take turns, say
    result = run("compress", tmp_path / "model", "--rank", "0.2", "--factors", "plain", "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert caplog.text.count("are left out") == 1


def test_the_command_says_what_it_does_to_a_text_and_refuses_too_much(folder, tmp_path):
    text, rows = tmp_path / "text.txt", tmp_path / "rows.jsonl"
    text.write_text(TEXT, encoding="utf-8")
    row = {"prompt": " ".join(TEXT.split()[:27]), "choices": ["y", "z"], "label": 0}
    rows.write_text("\n".join([json.dumps(row)] * 20), encoding="utf-8")
    found = []
    for source in (["--text", text], ["--data", rows]):
        result = run("compress", folder, "--keep", "0.5", *source, "-o", tmp_path / "out", "--json", "--overwrite")
        assert result.exit_code == 0, result.output
        found.append(json.loads(result.stdout)["side_effects"])
    assert all(effects["kl"] > 0 and effects["perplexity"]["after"] for effects in found)
    assert found[0] == squeezed(lasertri.load(folder), keep=0.5).side_effects.to_dict() != found[1]
    result = run("compress", folder, "--keep", "0.5", "--max-kl", "1e-6", "--text", text, "-o", tmp_path / "none")
    assert (result.exit_code, "mean KL of 1e-06" in result.stderr) == (1, True)
    assert not (tmp_path / "none").exists()


def test_a_file_that_is_no_text_is_an_error(folder, tmp_path):
    (tmp_path / "text.txt").write_bytes(b"\xff\xfe")
    result = run("compress", folder, "--text", tmp_path / "text.txt", "-o", tmp_path / "out")
    assert (result.exit_code, "text.txt: expected a text file in UTF-8" in result.stderr) == (1, True)


@pytest.mark.parametrize(
    "options",
    [["--keep", "2"], ["--keep", "0.9", "--rank", "0.1"], ["--rank", "-1"], ["--text", "a", "--task", "counterfact"]],
)
def test_usage_errors_exit_with_2(folder, tmp_path, options):
    assert run("compress", folder, "-o", tmp_path / "out", *options).exit_code == 2


def test_a_matrix_that_no_solver_converges_on_stays_as_it_is(model, monkeypatch, caplog):
    targets = find_targets(decaying(model))
    give_up_on(monkeypatch, [targets[2].view(targets[2].parameter(model))])
    report = squeezed(model, factors="plain", keep=0.5)
    assert [matrix.target for matrix in report.matrices if not matrix.factored] == [targets[2]]
    assert f"{targets[2]} stays as it is: no eigensolver and no SVD converges on {targets[2]}" in caplog.text
