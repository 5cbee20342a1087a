"""A factored checkpoint comes back bit for bit, is smaller, and is read by nothing that would read it wrongly."""

import copy
import hashlib
import json
import subprocess
import sys

import pytest
import torch
from tiny import make_samples
from transformers import AutoModelForCausalLM
from transformers.quantizers import auto
from typer.testing import CliRunner

import lasertri
from lasertri import LasertriError
from lasertri.cli import app
from lasertri.edit.candidate import Candidate
from lasertri.edit.edit import Edit
from lasertri.edit.truncation import Truncation, factored_edits
from lasertri.factored.checkpoint import DESCRIPTION, METHOD, _sha256, describe
from lasertri.factored.exchange import exchange, exchanged
from lasertri.factored.layer import FactoredLinear
from lasertri.factors.store import FactorStore
from lasertri.method import adapt
from lasertri.model.targets import find_targets

INPUTS = torch.arange(12).reshape(2, 6)
SMALL = {"blocks": (1, 3), "ratios": (0.1, 0.0), "count": 2, "progress": False, "accept": "best"}


def make_edits(model, *candidates):
    """Edits of layers 0, 1, … as (role, blocks, ratio, clustered)."""
    edits = []
    for layer, (role, blocks, ratio, clustered) in enumerate(candidates):
        target = next(t for t in find_targets(model) if (t.layer, t.role) == (layer, role))
        factors = FactorStore(model, [target], [blocks], budget=1 << 30)
        edits.append(Truncation.build(Candidate(target, blocks, ratio, clustered), model, factors))
    return edits


def make_factored(model):
    """A model with a layer of several blocks, one of several subspaces and one of rank 0."""
    edits = make_edits(model, ("fc_in", 3, 0.3, False), ("fc_out", 2, 0.3, True), ("fc_in", 8, 0.0, False))
    exchange(model, factored_edits(edits, model))
    return model


def factored_paths(model):
    return [path for path, module in model.named_modules() if isinstance(module, FactoredLinear)]


def weight_bytes(folder):
    return sum(path.stat().st_size for path in folder.glob("model*"))


def logits(model):
    with torch.no_grad():
        return model(INPUTS).logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("architecture", ["gptj", "gpt2", "llama", "gemma2"])
def test_a_saved_model_comes_back_bit_for_bit(model_of, tokenizer, tmp_path, architecture, dtype):
    lasertri.save(model_of(architecture, dtype=dtype), tmp_path / "model")
    model = make_factored(lasertri.load(tmp_path / "model"))
    lasertri.save(model, tmp_path / "out", tokenizer=tokenizer)
    loaded = lasertri.load(tmp_path / "out")
    assert type(loaded) is type(model)
    assert not loaded.training
    assert len(factored_paths(loaded)) == 3
    assert factored_paths(loaded) == factored_paths(model)
    before, after = model.state_dict(), loaded.state_dict()
    assert before.keys() == after.keys()
    assert all(after[name].equal(x) and after[name].dtype == x.dtype for name, x in before.items())
    assert logits(loaded).equal(logits(model))
    head, embeddings = loaded.get_output_embeddings(), loaded.get_input_embeddings()
    assert (head.weight is embeddings.weight) == model.config.tie_word_embeddings
    generated = [m.generate(INPUTS, max_new_tokens=4, do_sample=False, pad_token_id=1) for m in (model, loaded)]
    assert generated[0].equal(generated[1])
    assert generated[0].shape == (2, 10)
    assert lasertri.load_tokenizer(tmp_path / "out").get_vocab() == tokenizer.get_vocab()


def test_another_dtype_may_be_asked_for(model, tmp_path):
    lasertri.save(make_factored(model), tmp_path / "out")
    loaded = lasertri.load(tmp_path / "out", dtype=torch.bfloat16)
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
    assert lasertri.load(tmp_path / "out", dtype=None).dtype == torch.float32


def test_an_ordinary_model_is_written_and_read_as_ever(model, tmp_path):
    lasertri.save(model, tmp_path / "out")
    assert DESCRIPTION not in json.loads((tmp_path / "out" / "config.json").read_text())
    for loaded in (lasertri.load(tmp_path / "out"), AutoModelForCausalLM.from_pretrained(tmp_path / "out")):
        assert logits(loaded).equal(logits(model))


def test_shards_are_read_too(model, tmp_path, monkeypatch):
    make_factored(model)
    whole = type(model).save_pretrained
    monkeypatch.setattr(type(model), "save_pretrained", lambda *a, **k: whole(*a, max_shard_size="10KB", **k))
    lasertri.save(model, tmp_path / "out")
    first, *others = sorted((tmp_path / "out").glob("model-*.safetensors"))
    assert others
    for load in (lasertri.load, AutoModelForCausalLM.from_pretrained):
        assert logits(load(tmp_path / "out")).equal(logits(model))
    first.write_bytes(others[0].read_bytes())
    with pytest.raises(LasertriError, match=f"{first.name}', weights with factored layers, was changed"):
        lasertri.load(tmp_path / "out")


@pytest.mark.parametrize("architecture", ["gptj", "gemma2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_transformers_reads_it_and_writes_it_as_any_other(model_of, tmp_path, architecture, dtype):
    model = make_factored(model_of(architecture, dtype=dtype))
    lasertri.save(model, tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert type(loaded) is type(model)
    assert logits(loaded).equal(logits(lasertri.load(tmp_path / "out")))
    assert factored_paths(loaded) == factored_paths(model)
    loaded.save_pretrained(tmp_path / "again")
    assert logits(lasertri.load(tmp_path / "again")).equal(logits(model))
    assert loaded.float().dtype == torch.float32  # which models that are quantised refuse


def test_transformers_alone_names_it_and_fills_in_no_random_numbers(model, tmp_path, monkeypatch):
    lasertri.save(make_factored(model), tmp_path / "out")
    model.save_pretrained(tmp_path / "theirs")
    with pytest.raises(LasertriError, match="expected weights of the shapes"):
        lasertri.load(tmp_path / "theirs")
    monkeypatch.delitem(auto.AUTO_QUANTIZATION_CONFIG_MAPPING, METHOD)
    said = []
    monkeypatch.setattr(auto.logger, "warning", said.append)
    for name in ("out", "theirs"):
        with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
            AutoModelForCausalLM.from_pretrained(tmp_path / name)
    assert [f"got {METHOD} " in each for each in said] == [True]


def test_importing_the_folder_is_enough(model, tmp_path):
    lasertri.save(make_factored(model), tmp_path / "out")
    script = (
        "import lasertri.factored; from transformers import AutoModelForCausalLM; "
        f"print(AutoModelForCausalLM.from_pretrained({str(tmp_path / 'out')!r}).transformer.h[0].mlp.fc_in)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("FactoredLinear(")


def test_damaged_files_are_refused(model, tmp_path):
    folder = tmp_path / "out"
    lasertri.save(make_factored(model), folder)
    weights, path = folder / "model.safetensors", folder / "config.json"
    whole, config = weights.read_bytes(), json.loads(path.read_text())
    for damaged in (whole[:-1] + bytes([whole[-1] ^ 1]), whole[:-10]):
        weights.write_bytes(damaged)
        for load in (lasertri.load, AutoModelForCausalLM.from_pretrained):
            with pytest.raises(LasertriError, match="'model.safetensors', weights with factored layers, was changed"):
                load(folder)
    weights.unlink()
    with pytest.raises(LasertriError, match="no file named model.safetensors"):
        lasertri.load(folder)
    weights.write_bytes(whole)
    described = config[DESCRIPTION]
    layers = {path: fields | {"ordered": True} for path, fields in described["layers"].items()}
    for changed, said in (
        (described | {"layers": layers}, "description was changed"),
        ({"quant_method": METHOD}, "expected the description"),
        (described | {"layers": {"a": {}}}, "expected the description"),
        (described | {"layers": []}, "expected the description"),
    ):
        path.write_text(json.dumps(config | {DESCRIPTION: changed}))
        with pytest.raises(LasertriError, match=f"config.json, {DESCRIPTION}: .*{said}"):
            lasertri.load(folder)
    path.write_text(json.dumps(config | {"n_layer": 2}))
    with pytest.raises(LasertriError, match=r"a linear layer transformer\.h\.2\.mlp\.fc_in, got none"):
        lasertri.load(folder)


def signed(folder, change):
    """Change what the description says, with a checksum for it."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    described = config[DESCRIPTION]
    described.pop("sha256")
    change(described)
    config[DESCRIPTION] = described | {"sha256": _sha256(described)}
    path.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"offsets": [0, 20, 10, 40]}, "offsets that start at 0 and increase"),
        ({"offsets": [0, 14, 27, 40.0]}, "offsets that start at 0"),
        ({"offsets": [0, 14, 27, 41]}, "expected a layer of 41 outputs"),
        ({"offsets": "0123"}, "offsets that start"),
        ({"ranks": [4, 4]}, "description of factored layers, got zip"),
        ({"ranks": [4, 4, 99]}, "the rank 99 of a block of 13 rows"),
        ({"ranks": [4, 4, True]}, "the rank True"),
        ({"ordered": 1}, "ordered and pivoted"),
    ],
    ids=str,
)
def test_a_layout_that_no_layer_can_have_is_refused(model, tmp_path, fields, said):
    lasertri.save(make_factored(model), tmp_path / "out")
    signed(tmp_path / "out", lambda described: described["layers"]["transformer.h.0.mlp.fc_in"].update(fields))
    with pytest.raises(LasertriError, match=said):
        lasertri.load(tmp_path / "out")


@pytest.mark.parametrize("name", ["../outside.safetensors", "/outside.safetensors", "", ".."])
def test_files_elsewhere_are_not_looked_at(model, tmp_path, name):
    lasertri.save(make_factored(model), tmp_path / "out")
    (tmp_path / "outside.safetensors").write_bytes(b"")
    signed(tmp_path / "out", lambda described: described["files"].update({name: hashlib.sha256(b"").hexdigest()}))
    with pytest.raises(LasertriError, match="weights with factored layers, is missing"):
        lasertri.load(tmp_path / "out")


def test_an_order_with_a_row_twice_is_refused(model, tmp_path):
    factored = make_factored(model)
    layer = factored.get_submodule("transformer.h.1.mlp.fc_out")
    layer.index[0] = layer.index[1]
    factored.save_pretrained(tmp_path)
    describe({p: factored.get_submodule(p) for p in factored_paths(factored)}, tmp_path)
    with pytest.raises(LasertriError, match=r"an order of all rows of transformer\.h\.1\.mlp\.fc_out, got some twice"):
        lasertri.load(tmp_path)


@pytest.mark.parametrize("architecture", ["gptj", "gpt2"])
def test_several_edits_are_saved_as_factors(model_of, tokenizer, samples, tmp_path, architecture):
    model = model_of(architecture)
    before = copy.deepcopy(model.state_dict())
    result = adapt(model, samples, tokenizer=tokenizer, max_edits=2, score="taylor", **SMALL)
    assert len(result.edits) == 2
    for name, factored in (("dense", False), ("factored", True)):
        result.save(tmp_path / name, factored=factored)
    assert not factored_paths(model)
    assert all(x.equal(before[name]) for name, x in model.state_dict().items())
    assert weight_bytes(tmp_path / "factored") < weight_bytes(tmp_path / "dense")
    dense, loaded = (lasertri.load(tmp_path / name) for name in ("dense", "factored"))
    assert sorted(factored_paths(loaded)) == sorted(str(edit.candidate.target) for edit in result.edits)
    torch.testing.assert_close(logits(loaded), logits(dense), rtol=1e-4, atol=1e-4)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(logits(loaded), logits(model), rtol=1e-4, atol=1e-4)
    Edit.load(tmp_path / "factored").apply(model)


def test_an_edit_that_does_not_pay_is_written_whole(model, caplog):
    small, large = make_edits(model, ("fc_in", 1, 0.3, False), ("fc_in", 1, 0.9, False))
    layers = factored_edits([small, large], model)
    assert list(layers) == [str(small.candidate.target)]
    assert f"{large.candidate.target}: its factors would not be smaller" in caplog.text
    with exchanged(model, layers):
        assert factored_paths(model) == list(layers)


def test_a_factored_model_adapts_and_stays_factored(model, tokenizer, samples, tmp_path):
    make_factored(model)
    result = adapt(model, samples, tokenizer=tokenizer, **SMALL)
    assert result.edits
    result.save(tmp_path / "out")
    loaded = lasertri.load(tmp_path / "out")
    assert factored_paths(loaded) == factored_paths(model)
    for edit in result.edits:
        edit.apply(model)
    assert logits(loaded).equal(logits(model))


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_the_commands_write_and_measure_factored_checkpoints(folder, tmp_path):
    data = tmp_path / "data.jsonl"
    rows = [{"prompt": s.prompt, "choices": s.choices, "label": s.label} for s in make_samples(48)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["--data", data, "--blocks", "3", "--ratios", "0.1,0", "-q", "2", "--accept", "best"]
    result = run("adapt", folder, *options, "-o", tmp_path / "out", "--save", "factored", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert factored_paths(lasertri.load(tmp_path / "out")) == [found["edit"]["target"]]
    result = run("apply", tmp_path / "out", folder, "-o", tmp_path / "applied", "--save", "factored")
    assert result.exit_code == 0, result.output
    assert logits(lasertri.load(tmp_path / "applied")).equal(logits(lasertri.load(tmp_path / "out")))
    measured = run("eval", tmp_path / "applied", "--data", data, "--json")
    assert measured.exit_code == 0, measured.output
    assert json.loads(measured.stdout)["n"] == 48
    assert run("adapt", folder, *options, "--save", "pickle").exit_code == 2
