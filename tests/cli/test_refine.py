"""`lasertri refine`: an adapter in, an adapter out."""

import json

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from lasertri.cli import app
from lasertri.demo import MODEL_DIR
from lasertri.demo.recall import samples


@pytest.fixture
def adapter(tmp_path):
    config = peft.LoraConfig(r=4, target_modules=["fc_out", "v_proj"])
    adapted = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(MODEL_DIR), config)
    draws = torch.Generator().manual_seed(1)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3, generator=draws)
    adapted.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.fixture
def data(tmp_path):
    rows = [{"prompt": s.prompt, "completion": s.completion} for s in samples(80, seed=21)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "train.jsonl"


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_an_adapter_is_refined_for_the_model_that_it_names(adapter, data, tmp_path):
    out = tmp_path / "out"
    result = run("refine", adapter, "--data", data, "--accept", "best", "--no-progress", "-o", out, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["edit"]["kind"], found["edit"]["rank"]) == ("refine", 4)
    assert json.loads((out / "adapter_config.json").read_text())["r"] == 4
    assert "Before is the model with the adapter as it was" in (out / "README.md").read_text()
    assert f'load it by PeftModel.from_pretrained(base, "{out}")' in result.stderr
    measured = json.loads(run("eval", out, "--data", data, "--json").stdout)
    given = json.loads(run("eval", MODEL_DIR, "--edit", out, "--data", data, "--json").stdout)
    assert measured == given
    assert measured["log_loss"] < found["held_out"]["baseline"]["log_loss"]
    refused = run("refine", adapter, "--data", data, "-o", adapter, "--overwrite")
    assert (refused.exit_code, "is read from there; choose another" in refused.stderr) == (1, True)


def test_another_base_may_be_named_and_must_be_where_none_is(adapter, data):
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": None}))
    refused = run("refine", adapter, "--data", data)
    assert (refused.exit_code, "is empty; give the model as --base" in refused.stderr) == (1, True)
    found = run("refine", adapter, "--data", data, "--base", MODEL_DIR, "--no-progress")
    assert found.exit_code == 0, found.output
    assert "sizes" in found.stdout
    for folder, there in ((MODEL_DIR, "a whole model"), (data.parent, "no adapter_config.json")):
        refused = run("refine", folder, "--data", data)
        assert refused.exit_code == 1
        assert f"expected a folder with a LoRA adapter, found {there}; name such a folder" in refused.stderr
