"""A model that tensor parallelism spreads over processes is adapted to what one process finds with all of it."""

import json
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
from tiny import make_model, make_samples, make_tokenizer
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM

from lasertri import adapt
from lasertri.edit.edit import Edit
from lasertri.edit.origin import Origin
from lasertri.edit.step import Step
from lasertri.errors import LasertriError
from lasertri.model.parallel import here
from lasertri.model.targets import find_linear_layers, find_targets
from lasertri.support.sharing import shared_by

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(Version(transformers.__version__) < Version("5.17"), reason="its parts do not say of what"),
]

OPTIONS = {"accept": "best", "progress": False}
CLOSE = 2e-5  # in FP32, where sums of parts are made in another order
KINDS = {  # options, and how close the changes of weights are: tokens kept in BF16 may be rounded to another neighbour
    "all tokens": ({}, CLOSE),
    "in BF16, compressed": ({"memory_budget": 100_000}, 1e-3),
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


def found(group, folder, options, output):
    """What is found and written, and what the model gives before, after and with the edit, read again."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval() if group is None else sharded(folder, group)
    (attributes, weights), before = state(model), answers(model)
    result = adapt(model, make_samples(48), tokenizer=make_tokenizer("llama"), **OPTIONS, **options)
    attributes_now, weights_now = state(model)
    untouched = attributes_now == attributes and all(torch.equal(weights[name], weights_now[name]) for name in weights)
    if group is None or dist.get_rank(group) == 0:
        result.save(output)
    if group is not None:
        dist.barrier(group)
    with Edit.load(output).applied(model):
        beside = answers(model)
    result.edit.apply(model)
    applied = answers(model)
    with pytest.raises(LasertriError, match=r"other values or another dtype; apply the edit to its own base, once"):
        Edit.load(output).apply(model)
    figures = json.loads(without_times(result.to_dict()))
    del figures["environment"]
    return figures, untouched, before, beside, applied


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


def added(folder):
    """What an adapter adds to every layer."""
    tensors = load_file(folder / "adapter_model.safetensors")
    pairs = {name: name.replace("lora_A", "lora_B") for name in tensors if "lora_A" in name}
    return {name: tensors[other].double() @ tensors[name].double() for name, other in pairs.items()}


@pytest.mark.parametrize(("options", "close"), KINDS.values(), ids=KINDS)
def test_processes_with_parts_of_a_model_find_what_one_finds_with_all_of_it(tmp_path, options, close):
    folder = tmp_path / "model"
    make_model("llama", intermediate_size=41).save_pretrained(folder)  # the last process has fewer of these
    one, all_of_them = tmp_path / "one", tmp_path / "all"
    expected, _, *outputs = found(None, folder, options, one)
    first, second = team(2, "test_sharded", "found", folder, options, all_of_them)
    for figures, untouched, *own in (first, second):
        assert list(differences(figures, expected)) == []
        assert untouched
        for theirs, logits in zip(outputs, own, strict=True):
            assert torch.allclose(theirs, logits, rtol=close, atol=close)
    assert first[0] == second[0]
    assert not torch.allclose(outputs[0], outputs[1], rtol=0.01, atol=0.01)
    wanted, written = added(one), added(all_of_them)
    for name, change in wanted.items():
        assert (written[name] - change).norm() < close * change.norm()
    origins = [Edit.load(place).origin for place in (one, all_of_them)]
    assert origins[0].sha256 == origins[1].sha256
    assert origins[1].base == str(folder)


def changed(group, folder):
    """Where a model came from, before and after one process changes its part."""
    model = sharded(folder, group)
    targets = find_linear_layers(model, beside=True)
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
    "shrink": "expected edit='step', without merge, .* got shrink; leave edit and merge out, or load the whole model",
    "merge": "expected edit='step', without merge, .* got a merged step",
    "journal": "expected no journal for a model that tensor parallelism spreads over processes",
    "group": "expected no group for a model that tensor parallelism spreads over processes",
    "experts": "expected plain linear layers .* got one with experts",
    "gathered": "expected layers in the styles colwise and rowwise, .* got model.layers.0.mlp.gate_up_proj in 'colwi",
    "FSDP": "expected a model that tensor parallelism alone spreads over processes",
    "peft": "expected peft 0.21.1 or later",
    "truncation": "expected model.layers.0.mlp.gate_proj.weight whole, got a DTensor, of which every process holds a",
}


def refused(group, folder, experts, gathered):
    """What is said of all that is not done."""
    model, tokenizer, said = sharded(folder, group), make_tokenizer("llama"), {}
    asked = {
        "shrink": (model, {"edit": "shrink"}),
        "merge": (model, {"merge": True}),
        "journal": (model, {"journal": "journal"}),
        "group": (model, {"group": group}),
        "experts": (sharded(experts, group), {}),
        "gathered": (sharded(gathered, group), {}),
        "FSDP": (fully_shard(make_model("llama")), {}),
    }
    for kind, (own, options) in asked.items():
        with pytest.raises(LasertriError) as raised:
            adapt(own, make_samples(48), tokenizer=tokenizer, **OPTIONS, **options)
        said[kind] = str(raised.value)
    with pytest.raises(LasertriError) as raised:
        find_targets(model)
    said["truncation"] = str(raised.value)
    other = asked["gathered"][0]
    target = find_linear_layers(other, "gate_up", beside=True)[0]
    step = Step("plain", 1, 1.0, {target: (torch.zeros(80, 1), torch.zeros(1, 16))})
    with pytest.raises(LasertriError) as raised, step.beside(other):
        pass
    assert str(raised.value) == said["gathered"]
    with patch("importlib.metadata.version", lambda _: "0.21.0"), pytest.raises(LasertriError) as raised:
        adapt(model, make_samples(48), tokenizer=tokenizer, **OPTIONS)
    return said | {"peft": str(raised.value)}


def test_what_is_not_done_with_parts_of_a_model_is_refused_in_a_sentence(tmp_path):
    folders = [tmp_path / name for name in ("llama", "qwen3_moe", "phi3")]
    for folder in folders:
        make_model(folder.name).save_pretrained(folder)
    for said in team(2, "test_sharded", "refused", *folders):
        assert said.keys() == REFUSED.keys()
        for kind, sentence in said.items():
            assert re.match(REFUSED[kind], sentence), sentence
