"""A model that tensor parallelism spreads over processes is adapted to what one process finds with all of it."""

import json
import logging
import math
import re
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
import transformers
from killing import without_times
from packaging.version import Version
from safetensors.torch import load_file
from team import team
from test_processes import LASERTRI, TWO, launch
from tiny import make_model, make_samples, make_tokenizer
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from lasertri import adapt, refine
from lasertri.cli import app
from lasertri.edit.edit import Edit
from lasertri.edit.origin import Origin
from lasertri.edit.step import Step
from lasertri.errors import LasertriError
from lasertri.model.parallel import here
from lasertri.model.targets import find_linear_layers, find_targets
from lasertri.result.adaptation import SUMMARY_NAME
from lasertri.support.sharing import shared_by

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(Version(transformers.__version__) < Version("5.17"), reason="its parts do not say of what"),
]

OPTIONS = {"accept": "best", "progress": False}
CLOSE = 2e-5  # in FP32, where sums of parts are made in another order
KINDS = {  # options, and how close what is changed is: tokens kept in BF16 may be rounded to another neighbour
    "step of all tokens": ({}, CLOSE),
    "step in BF16, compressed": ({"memory_budget": 100_000}, 1e-3),
    "merged step": ({"merge": True}, CLOSE),
    "truncation": ({"edit": "truncate"}, CLOSE),
    "truncations by slope, factors made again": (
        {"edit": "truncate", "score": "taylor", "blocks": (1, 3), "ratios": (0.5, 0.3), "memory_budget": 45_000}
        | {"targets": ".", "count": 2, "max_edits": 2},
        CLOSE,
    ),
    "truncation in clusters": ({"edit": "truncate", "strategy": "optimal-clustering", "blocks": 3, "count": 2}, CLOSE),
    "truncation in place": (
        {"edit": "truncate", "strategy": "laser-100-eval", "svd": "laser-compat", "ratios": 0.1},
        CLOSE,
    ),
    "shrink": ({"edit": "shrink", "blocks": 3}, CLOSE),
}


def sharded(folder, group):
    """The model there, a part of it in each process."""
    from transformers.distributed import DistributedConfig

    parts = DistributedConfig(tp_plan="auto", tp_size=dist.get_world_size(group))
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, distributed_config=parts).eval()


def state(model):
    """What the modules have, and the weights, as far as they are here."""
    weights = {name: here(parameter).detach().clone() for name, parameter in model.named_parameters()}
    return {path: set(vars(module)) for path, module in model.named_modules()}, weights


@torch.no_grad()
def answers(model):
    return model(torch.arange(12).view(2, 6)).logits


def saved(output):
    """The first edit there, which beside a checkpoint of a merged step stands deeper."""
    return Edit.load(output / "adapter" if (output / "adapter").exists() else output)


def found(group, folder, output):
    """Of every kind what is found, said and written, and what the model gives before, after and with the edit again."""
    return {kind: found_of(group, folder, options, output / kind) for kind, (options, _) in KINDS.items()}


def found_of(group, folder, options, output):
    """See `found`."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval() if group is None else sharded(folder, group)
    (attributes, weights), before = state(model), answers(model)
    said = logging.Handler()
    said.emit = lambda record: said.__dict__.setdefault("texts", []).append(record.getMessage())
    logging.getLogger("lasertri").addHandler(said)
    result = adapt(model, make_samples(48), tokenizer=make_tokenizer("llama"), **OPTIONS | options)
    attributes_now, weights_now = state(model)
    untouched = attributes_now == attributes and all(torch.equal(weights[name], weights_now[name]) for name in weights)
    if group is None or dist.get_rank(group) == 0:
        result.save(output)
    if group is not None:
        dist.barrier(group)
    logging.getLogger("lasertri").removeHandler(said)
    edit = saved(output)
    with edit.applied(model):
        beside = answers(model)
    result.edit.apply(model)
    applied = answers(model)
    with pytest.raises(LasertriError, match=r"has other values.*; apply the edit to its own base, once"):
        edit.apply(model)
    figures = json.loads(without_times(result.to_dict()))
    del figures["environment"]
    return figures, vars(said).get("texts", []), untouched, before, beside, applied


def differences(one, other, path=""):
    """Where two results are not the same, with both."""
    if isinstance(one, dict) and one.keys() == other.keys():
        for key in one:
            yield from differences(one[key], other[key], f"{path}/{key}")
    elif isinstance(one, list | tuple) and len(one) == len(other):
        for i, pair in enumerate(zip(one, other, strict=True)):
            yield from differences(*pair, f"{path}/{i}")
    elif not (isinstance(one, float) and math.isclose(one, other, rel_tol=CLOSE, abs_tol=CLOSE)) and one != other:
        yield path, one, other


def changes(output, folder):
    """What the edit that was saved there adds to every weight of the whole model."""
    model, edit = AutoModelForCausalLM.from_pretrained(folder), saved(output)
    before = {target.name: target.whole(model).double() for target in edit.targets}
    edit.apply(model)
    return {target.name: target.whole(model).double() - before[target.name] for target in edit.targets}


@pytest.fixture(scope="module")
def searches(tmp_path_factory):
    """A model's folder, two for what is written, and what one process and two have found."""
    place = tmp_path_factory.mktemp("searches")
    folder, one, both = place / "model", place / "one", place / "both"
    model, generator = make_model("llama", intermediate_size=41, mlp_bias=True), torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():  # of 41 rows the last process has fewer
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1, generator=generator)
    model.save_pretrained(folder)
    return folder, one, both, found(None, folder, one), team(2, "test_sharded", "found", folder, both, timeout=600)


@pytest.mark.parametrize("kind", KINDS)
def test_processes_with_parts_of_a_model_find_what_one_finds_with_all_of_it(searches, kind):
    folder, one, both, alone, (first, second) = searches
    close = KINDS[kind][1]
    expected, said, _, *outputs = alone[kind]
    for figures, _, untouched, *own in (first[kind], second[kind]):
        assert list(differences(figures, expected)) == []
        assert untouched
        for theirs, logits in zip(outputs, own, strict=True):
            assert torch.allclose(theirs, logits, rtol=close, atol=close)
    assert first[kind][0] == second[kind][0]
    assert first[kind][1] == said  # such as that trials run with the weight in place
    assert not torch.allclose(outputs[0], outputs[1], rtol=0.01, atol=0.01)
    wanted, written = changes(one / kind, folder), changes(both / kind, folder)
    assert wanted.keys() == written.keys()
    for name, change in wanted.items():
        assert (written[name] - change).norm() < close * change.norm()
    assert not (both / kind / "config.json").exists()  # of no checkpoint


def test_torchrun_writes_what_one_process_writes_and_the_first_speaks(tmp_path):
    folder, data = tmp_path / "model", tmp_path / "train.jsonl"
    make_model("llama").save_pretrained(folder)
    make_tokenizer("llama").save_pretrained(folder)
    write(data)
    alone, both, again, cache = (tmp_path / name for name in ("alone", "both", "again", "cache"))
    command = ["adapt", folder, "--data", data, "--edit", "truncate", "--accept", "best", "--no-progress"]
    in_one_process(*command, "-o", alone)
    run = launch(LASERTRI, [*command, "-o", both, "--tensor-parallel"], *TWO, cache=cache)
    told, noted = run.communicate()
    assert run.returncode == 0, noted
    expected, written = (json.loads(without_times(summary(place))) for place in (alone, both))
    assert list(differences(written, expected)) == []
    assert told.count("calibration") == 1
    assert noted.count("reading the model") == noted.count("lasertri apply") == 1
    assert not cache.exists()  # no journal, and no factors
    in_one_process("apply", both, folder, "-o", again)
    ours, theirs = (load_file(place / "model.safetensors") for place in (again, alone))
    assert all(torch.allclose(ours[name], theirs[name], rtol=CLOSE, atol=CLOSE) for name in ours.keys() | theirs.keys())


def in_one_process(*command):
    done = CliRunner().invoke(app, list(map(str, command)))
    assert done.exit_code == 0, done.output


def write(path):
    """Samples."""
    rows = [{"prompt": s.prompt, "choices": s.choices, "label": s.label} for s in make_samples(64)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def summary(folder):
    """What was measured, but for where."""
    measured = json.loads((folder / SUMMARY_NAME).read_text())
    del measured["environment"]
    return measured


def test_a_mistake_of_all_is_told_once(tmp_path):
    make_model("llama").save_pretrained(tmp_path)
    make_tokenizer("llama").save_pretrained(tmp_path)
    write(tmp_path / "train.jsonl")
    command = ["adapt", tmp_path, "--data", tmp_path / "train.jsonl", "--tensor-parallel", "--targets", "nothing"]
    run = launch(LASERTRI, command, *TWO, cache=tmp_path / "cache")
    _, noted = run.communicate()
    assert run.returncode == 1
    assert len(re.findall("^lasertri.*: expected linear layers that match", noted, re.MULTILINE)) == 1, noted


def changed(group, folder):
    """Where a model came from, before and after one process changes its part."""
    model = sharded(folder, group)
    targets = find_linear_layers(model, sharded=True)
    with shared_by(group, sharded=True):
        origin = Origin.of(model, targets)
    if dist.get_rank(group) == 1:
        here(targets[0].parameter(model))[0, 0] += 1
    with pytest.raises(LasertriError, match="has other values or another dtype"):
        origin.require(model)
    with shared_by(group, sharded=True):
        return origin.base, Origin.of(model, targets).base


def test_a_change_of_one_part_is_seen_in_all_processes(tmp_path):
    make_model("llama").save_pretrained(tmp_path)
    assert team(2, "test_sharded", "changed", tmp_path) == 2 * [(str(tmp_path), "")]


REFUSED = {
    "journal": "expected no journal for a model that tensor parallelism spreads over processes",
    "group": "expected no group for a model that tensor parallelism spreads over processes",
    "experts": "expected plain linear layers .* got one with experts",
    "heads": "expected a number of processes that divides the model's 3 heads of keys and values, got 2; start fewer",
    "gathered": "expected layers in the styles colwise and rowwise, got model.layers.0.mlp.gate_up_proj in 'colwi",
    "FSDP": "expected a model that tensor parallelism alone spreads over processes",
    "peft": "expected peft 0.21.1 or later",
    "outside of adapt": "expected model.layers.0.mlp.gate_proj.weight whole, got a DTensor, of which every process hol",
    "stored with others": "expected model.layers.0.mlp.gate_up_proj.weight whole, got a DTensor, of which every proces",
    "refine": "expected a whole model to refine an adapter of, got one that tensor parallelism spreads over processes",
    "factored": "expected a whole model to keep as factors, got one that tensor parallelism .* lasertri apply --save f",
}


def refused(group, folder, experts, gathered, odd):
    """What is said of all that is not done."""
    model, tokenizer, said = sharded(folder, group), make_tokenizer("llama"), {}
    asked = {
        "journal": (model, {"journal": "journal"}),
        "group": (model, {"group": group}),
        "experts": (sharded(experts, group), {}),
        "heads": (sharded(odd, group), {}),
        "gathered": (sharded(gathered, group), {}),
        "stored with others": (sharded(gathered, group), {"edit": "truncate"}),
        "FSDP": (fully_shard(make_model("llama")), {}),
    }
    for kind, (own, options) in asked.items():
        with pytest.raises(LasertriError) as raised:
            adapt(own, make_samples(48), tokenizer=tokenizer, **OPTIONS, **options)
        said[kind] = str(raised.value)
    with pytest.raises(LasertriError) as raised:
        find_targets(model)
    said["outside of adapt"] = str(raised.value)
    with pytest.raises(LasertriError) as raised:
        refine("adapter", make_samples(48), model=model)
    said["refine"] = str(raised.value)
    quick = {"edit": "truncate", "blocks": 1, "ratios": 0.5, "count": 1}
    with pytest.raises(LasertriError) as raised:
        adapt(model, make_samples(48), tokenizer=tokenizer, **OPTIONS, **quick).save("never", factored=True)
    said["factored"] = str(raised.value)
    other = asked["gathered"][0]
    target = find_linear_layers(other, "gate_up", sharded=True)[0]
    step = Step("plain", 1, 1.0, {target: (torch.zeros(80, 1), torch.zeros(1, 16))})
    with pytest.raises(LasertriError) as raised, step.beside(other):
        pass
    assert str(raised.value) == said["gathered"]
    with patch("importlib.metadata.version", lambda _: "0.21.0"), pytest.raises(LasertriError) as raised:
        adapt(model, make_samples(48), tokenizer=tokenizer, **OPTIONS)
    return said | {"peft": str(raised.value)}


def test_what_is_not_done_with_parts_of_a_model_is_refused_in_a_sentence(tmp_path):
    folders = [tmp_path / name for name in ("llama", "qwen3_moe", "phi3", "odd")]
    for folder in folders[:-1]:
        make_model(folder.name).save_pretrained(folder)
    make_model("llama", hidden_size=24, num_attention_heads=6, num_key_value_heads=3).save_pretrained(folders[-1])
    for said in team(2, "test_sharded", "refused", *folders):
        assert said.keys() == REFUSED.keys()
        for kind, sentence in said.items():
            assert re.match(REFUSED[kind], sentence), sentence
