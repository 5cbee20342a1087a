"""The card says what was measured, loads what it says, and names no folder of this machine."""

import json
import re
import string
from importlib.metadata import version

import torch
from huggingface_hub import ModelCard
from tiny import make_samples
from typer.testing import CliRunner

from lasertri import adapt, load_model
from lasertri.cli import app
from lasertri.demo import MODEL_DIR
from lasertri.demo.recall import samples as recall_samples
from lasertri.edit.edit import all_applied
from lasertri.result.adaptation import SUMMARY_NAME
from lasertri.result.card import Base, Made, adaptation_card
from lasertri.result.summary import differences
from lasertri.support.output_folder import FILES_NAME

INPUTS = torch.arange(12).reshape(2, 6)
STEP = {"targets": r"h\.1\.mlp", "accept": "best", "progress": False, "seed": 1}
NAMES_A_PLACE = re.compile(r"[\s\"'`=(]/\w")
TRUNCATION = {"blocks": (1,), "ratios": (0.1,), "count": 1, "accept": "best", "progress": False, "seed": 1}


def loaded_as_said(folder, monkeypatch):
    """What the card's own code gives, run beside the folder."""
    monkeypatch.chdir(folder.parent)
    [code] = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    names = {}
    exec(code, names)
    with torch.no_grad():
        return names["model"](INPUTS).logits


def run(*arguments):
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == 0, result.output
    return result


def test_the_card_of_an_adapter(folder, tmp_path, monkeypatch):
    (folder / "README.md").write_text("---\nlicense: mit\ntags: [mine]\n---\nMine.")
    data = tmp_path / "train.jsonl"
    rows = [{"prompt": s.prompt, "choices": s.choices, "label": s.label} for s in make_samples(48)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = load_model(folder)
    found = adapt(model, data, **STEP)
    found.save(tmp_path / "out")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.to_dict() == {
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "license": "mit",
        "tags": ["lasertri", "step", "lora"],
    }
    for line in differences(found.to_dict()["held_out"]):
        assert re.search(r"[+-]\d.*", line)[0] in card.text
    for said in ("held out, n = 24", "`train.jsonl`", "`model` edited", "`seed=1`", f"torch {version('torch')}"):
        assert said in card.text
    assert str(tmp_path) not in card.content
    with found.edit.applied(model), torch.no_grad():
        torch.testing.assert_close(loaded_as_said(tmp_path / "out", monkeypatch), model(INPUTS).logits)
    assert "README.md" in json.loads((tmp_path / "out" / FILES_NAME).read_text())["files"]
    found.save(tmp_path / "out", overwrite=True)


def test_the_card_of_edits_without_a_checkpoint(folder, tmp_path, monkeypatch):
    model = load_model(folder)
    found = adapt(model, make_samples(48), **TRUNCATION | {"max_edits": 2, "count": 2})
    for edit, place in zip(found.edits, (tmp_path / "out", tmp_path / "out" / "edit-2"), strict=True):
        edit.save(place)
    card = adaptation_card(found.to_dict(), Base.of(model), "edit", Made(), "out")
    (tmp_path / "out" / "README.md").write_text(card)
    with all_applied(found.edits, model), torch.no_grad():
        torch.testing.assert_close(loaded_as_said(tmp_path / "out", monkeypatch), model(INPUTS).logits)


def test_a_model_of_the_hub_is_the_base_by_its_id(model, tokenizer, tmp_path):
    model.config._name_or_path, model.config._commit_hash = "me/base", "0" * 40
    found = adapt(model, make_samples(48), tokenizer=tokenizer, **TRUNCATION)
    found.save(tmp_path / "out")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert (card.data.base_model, card.data.base_model_relation) == ("me/base", "finetune")
    assert (card.data.library_name, card.data.tags) == ("transformers", ["lasertri", "truncate"])
    assert f"(https://huggingface.co/me/base), revision `{12 * '0'}`" in card.text
    assert "truncated to rank" in card.text


def test_without_an_edit_there_is_no_card(model, tokenizer, tmp_path):
    adapt(model, make_samples(48), tokenizer=tokenizer, **TRUNCATION | {"accept": "test"}).save(tmp_path / "out")
    assert (tmp_path / "out" / SUMMARY_NAME).exists()
    assert not (tmp_path / "out" / "README.md").exists()


def test_commands_say_what_they_were_and_an_applied_edit_what_was_measured_of_it(tmp_path, monkeypatch):
    data, out = tmp_path / "train.jsonl", tmp_path / "out"
    rows = [{"prompt": s.prompt, "completion": s.completion} for s in recall_samples(80, seed=21)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run("adapt", MODEL_DIR, "--data", data, "--rank", "8", "--targets", "mlp", "--accept=best", "-o", out)
    said = "lasertri adapt model --data train.jsonl --rank 8 --targets mlp --accept best --output out"
    card = ModelCard.load(out / "README.md")
    assert said in card.text
    run("apply", out, MODEL_DIR, "-o", tmp_path / "applied")
    applied = ModelCard.load(tmp_path / "applied" / "README.md")
    assert (applied.data.library_name, applied.data.tags) == ("transformers", ["lasertri", "step"])
    figures = next(line for line in card.text.splitlines() if line.startswith("| accuracy"))
    for line in (figures, "lasertri apply out model --output applied", "`train.jsonl`", "rounded to their dtype"):
        assert line in applied.text
    (tmp_path / "model").symlink_to(MODEL_DIR)
    ours, theirs = (loaded_as_said(place, monkeypatch) for place in (out, tmp_path / "applied"))
    torch.testing.assert_close(ours, theirs)
    (out / SUMMARY_NAME).write_text(json.dumps(json.loads((out / SUMMARY_NAME).read_text()) | {"edit": None}))
    run("apply", out, MODEL_DIR, "-o", tmp_path / "again")
    assert "It was not measured here." in (tmp_path / "again" / "README.md").read_text()
    for place in ("out", "applied", "again"):
        assert not NAMES_A_PLACE.search((tmp_path / place / "README.md").read_text())


def test_the_card_of_a_compressed_model(folder, tmp_path, monkeypatch):
    (tmp_path / "text.txt").write_text(" ".join(string.ascii_lowercase[i * i % 26] for i in range(2000)))
    run("compress", folder, "-o", tmp_path / "small", "--rank", "0.2", "--text", tmp_path / "text.txt")
    card = ModelCard.load(tmp_path / "small" / "README.md")
    assert card.data.tags == ["lasertri", "compress"]
    assert re.search(r"6 of 6 matrices as whitened factors", card.text)
    assert re.search(r"[\d,]+ bytes before, [\d,]+ after", card.text)
    assert re.search(r"Side effects, on \d+ tokens of text that took no part: mean KL", card.text)
    assert "`text.txt`" in card.text
    assert not NAMES_A_PLACE.search(card.content)
    with torch.no_grad():
        expected = load_model(tmp_path / "small")(INPUTS).logits
    assert loaded_as_said(tmp_path / "small", monkeypatch).equal(expected)
