"""Commands take a GGUF file where they take a model."""

import json

import pytest
from typer.testing import CliRunner

pytest.importorskip("gguf", reason="gguf, which writes and reads GGUF files, is not installed")
from gguf_files import write_gguf
from transformers import AutoModelForCausalLM

from lasertri.cli import app


def run(*arguments):
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture
def model(tmp_path):
    write_gguf(tmp_path / "tiny.gguf")
    return tmp_path / "tiny.gguf"


def test_adapt_eval_and_apply_take_one(tmp_path, model):
    data, out = tmp_path / "train.jsonl", tmp_path / "out"
    rows = [
        {"prompt": f"{chr(97 + i % 26)} {i}", "choices": [" yes", " no"], "label": int(i % 9 == 0)} for i in range(60)
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = run("adapt", model, "--data", data, "--accept", "best", "--direction", "plain", "-o", out)
    assert f'its base: AutoModelForCausalLM.from_pretrained("{tmp_path}", gguf_file="tiny.gguf")' in result.stderr
    run("apply", out, model, "-o", tmp_path / "merged")
    places = [(out,), (model, "--edit", out), (tmp_path / "merged",), (model,)]
    adapted, beside, merged, base = (json.loads(run("eval", *p, "--data", data, "--json").stdout) for p in places)
    assert adapted == beside
    assert merged["log_loss"] == pytest.approx(adapted["log_loss"], rel=1e-4)
    assert adapted["choice_log_loss"] < base["choice_log_loss"]


def test_compress_takes_one_and_writes_an_ordinary_checkpoint(tmp_path, model):
    run("compress", model, "--rank", "0.2", "--factors", "plain", "-o", tmp_path / "smaller")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "smaller").config.model_type == "qwen2"
