"""The model that an edit was made of is known again, by its layers and their weights."""

import json
import threading

import pytest
import torch
from tiny import auto_class, make_model
from torch import nn

from lasertri import LasertriError
from lasertri.edit.origin import Origin, checksums_ahead
from lasertri.model.targets import find_linear_layers
from lasertri.support.checksum import weight_sha256


def test_it_notes_where_the_model_came_from_and_every_weight():
    model = make_model("gpt2")
    model.config._name_or_path, model.config._commit_hash = "somebody/model", "abc123"
    targets = find_linear_layers(model)
    origin = Origin.of(model, targets)
    assert (origin.base, origin.revision) == ("somebody/model", "abc123")
    assert origin.modules == ("c_attn", "c_fc", "c_proj")
    assert origin.sha256 == {target: weight_sha256(target.parameter(model)) for target in targets}
    assert Origin.from_dict(json.loads(json.dumps(origin.to_dict())), targets) == origin
    origin.require(model)


def test_of_nothing_it_asks_nothing():
    assert Origin.from_dict(json.loads(json.dumps(Origin().to_dict())), []) == Origin()
    Origin().require(nn.Linear(2, 3))
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5))
    origin = Origin.of(model, find_linear_layers(model))
    assert (origin.base, origin.revision, origin.modules) == ("", None, ("0", "2"))
    origin.require(model)


@pytest.mark.parametrize(
    ("name", "pattern", "modules"),
    [
        ("llama", None, ("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj")),
        ("llama", r"_proj$", ("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj")),
        ("llama", "mlp", ("down_proj", "gate_proj", "up_proj")),
        ("llama", r"layers\.1\.", ()),  # the other layers' end alike
        ("gpt2", "mlp", ()),  # attention has a c_proj too
        ("gpt2", "c_fc", ("c_fc",)),
        ("roberta", None, ()),  # the head has a dense
        ("roberta", "query", ("query",)),
        ("t5", "Dense", ("wi", "wo")),
    ],
)
def test_short_names_where_they_name_these_layers_and_no_others(name, pattern, modules):
    model = make_model(name)
    assert Origin.of(model, find_linear_layers(model, pattern)).modules == modules


@pytest.mark.parametrize(
    ("name", "pattern", "modules", "parameters"),
    [
        ("llama", None, ("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"), {}),
        ("mixtral", r"\.1\.", (), {"experts.gate_up_proj": (3, False), "experts.down_proj": (3, False)}),
        (
            "qwen3_moe",
            r"q_proj|\.2\..*experts",
            ("q_proj",),
            {"experts.gate_up_proj": (4, False), "experts.down_proj": (4, False)},
        ),
        ("qwen3_moe", r"\.1\.mlp\.(up|down)", (), {"up_proj.weight": (1, False), "down_proj.weight": (1, False)}),
        ("aria_text", r"\.0\..*experts\.down.*1$", (), {"experts.down_proj": (3, True)}),
        ("llama4_text", r"\.0\..*experts\.gate_up.*1$", (), {"experts.gate_up_proj": (3, False)}),
    ],
)
def test_what_peft_is_given_by_its_own_path(name, pattern, modules, parameters):
    model = make_model(name)
    targets = find_linear_layers(model, pattern)
    origin = Origin.of(model, targets)
    assert origin.modules == modules
    assert [(path.split(".", 4)[4], stored) for path, stored in origin.parameters.items()] == list(parameters.items())
    assert Origin.from_dict(json.loads(json.dumps(origin.to_dict())), targets) == origin


def test_any_other_weight_is_told():
    model = make_model("gptj")
    targets = find_linear_layers(model)
    origin = Origin.of(model, targets)
    for target in (targets[0], targets[-1]):
        parameter = target.parameter(model)
        kept = parameter.detach().clone()
        with torch.no_grad():
            parameter[-1, -1] = torch.nextafter(parameter[-1, -1], torch.tensor(9.0))
            with pytest.raises(LasertriError, match=f"{target} of this model has other values"):
                origin.require(model)
            parameter.copy_(kept)
    origin.require(model)
    model.transformer.h[2].mlp = nn.Identity()
    with pytest.raises(LasertriError, match=r"expected a model with transformer\.h\.2\.mlp\.fc_in"):
        origin.require(model)


def test_a_weight_that_was_found_to_be_the_same_is_not_summed_again(monkeypatch):
    model, summed = make_model("gptj"), []
    targets = find_linear_layers(model)
    origin = Origin.of(model, targets)
    read = Origin.from_dict(origin.to_dict(), targets)
    monkeypatch.setattr("lasertri.edit.origin.weight_sha256", lambda weight: summed.append(1) or weight_sha256(weight))
    for _ in range(2):
        origin.require(model)
    assert not summed
    for _ in range(2):
        read.require(model)
    assert len(summed) == len(targets)


@pytest.mark.parametrize("name", ["gpt2", "mixtral"])
def test_checksums_made_ahead_are_those_made_later(name, monkeypatch):
    model = make_model(name)
    targets = find_linear_layers(model)
    with checksums_ahead(model, targets) as checksums:
        pass
    assert not checksums, "a CPU has nothing else to do them beside"
    monkeypatch.setattr("lasertri.edit.origin.AHEAD", {"cpu"})
    with checksums_ahead(model, targets) as checksums:
        pass
    expected = Origin.of(model, targets)
    assert checksums == expected.sha256
    monkeypatch.setattr("lasertri.edit.origin.weight_sha256", None)
    assert Origin.of(model, targets[:2], checksums=checksums).sha256 == {t: checksums[t] for t in targets[:2]}
    with pytest.raises(KeyError):  # what has none must not look as if it were quantised
        Origin.of(model, targets[:2], checksums={targets[0]: checksums[targets[0]]})


def test_what_fails_meanwhile_waits_for_no_checksums(monkeypatch):
    model, summed = make_model("gpt2"), []
    monkeypatch.setattr("lasertri.edit.origin.AHEAD", {"cpu"})
    monkeypatch.setattr("lasertri.edit.origin.THREADS", 1)
    begun, failed = threading.Event(), threading.Event()

    def slow(weight):
        begun.set()
        failed.wait(60)
        summed.append(weight)

    monkeypatch.setattr("lasertri.edit.origin.weight_sha256", slow)
    with pytest.raises(KeyboardInterrupt), checksums_ahead(model, find_linear_layers(model)):
        begun.wait(60)
        threading.Timer(0.1, failed.set).start()
        raise KeyboardInterrupt
    assert len(summed) == 1


def test_a_quantised_weight_is_told_as_such():
    model = nn.Sequential(nn.Linear(3, 4))
    origin = Origin.of(model, find_linear_layers(model))
    model[0].weight = nn.Parameter(model[0].weight.to(torch.float8_e4m3fn), requires_grad=False)
    with pytest.raises(LasertriError, match=r"expected 0\.weight as a plain tensor"):
        origin.require(model)


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5"])
def test_a_model_that_is_not_what_its_base_holds_names_no_base(name, tmp_path, caplog):
    """After `merge_and_unload`, say, or with an edit applied: the base that it names would give other answers."""
    make_model(name).save_pretrained(tmp_path, max_shard_size="8KB")
    model = auto_class(name).from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert Origin.of(model, find_linear_layers(model)).base == str(tmp_path)
    assert not caplog.messages
    with torch.no_grad():
        model.get_input_embeddings().weight[3, 2] += 1
    assert Origin.of(model, find_linear_layers(model)).base == ""
    assert "is not what" in caplog.text
    assert "save the model, which is that base" in caplog.text
