"""Where commands write: looked at before the work, and in place of nothing but what lasertri wrote."""

import json
import shutil

import pytest
from tiny import make_samples
from typer.testing import CliRunner

from lasertri.cli import app
from lasertri.cli.samples import TextSource
from lasertri.errors import LasertriError
from lasertri.support.output_folder import FILES_NAME

SMALL = ["--blocks", "1", "--ratios", "0.5", "-q", "1", "--accept", "best", "--no-progress"]


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def refusal(*arguments):
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (1, ""), result.output
    [message] = result.stderr.strip().splitlines()
    return message


@pytest.fixture
def data(tmp_path):
    rows = [{"prompt": s.prompt, "choices": s.choices, "label": s.label} for s in make_samples(44)]
    path = tmp_path / "data" / "train.jsonl"
    path.parent.mkdir()
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def lasertris(folder):
    """Have a folder look as if lasertri wrote all that is in it."""
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*")]
    (folder / FILES_NAME).write_text(json.dumps({"files": [FILES_NAME, *names]}))
    return folder


def test_nothing_that_is_read_is_replaced(folder, data, tmp_path):
    edit, config, task = tmp_path / "edit", tmp_path / "own" / "run.toml", tmp_path / "task"
    for place in (edit, config.parent, task):
        place.mkdir()
    config.write_text("")
    for place in (edit, config.parent, task, folder, data.parent):
        lasertris(place)
    lasertris(tmp_path)
    before = contents(tmp_path)
    adapt = ["adapt", folder, "--data", data, "--held-out", data]
    commands = [
        (folder, [*adapt]),
        (data.parent, [*adapt]),
        (tmp_path, [*adapt]),
        (config.parent, [*adapt, "--config", config]),
        (task, ["adapt", folder, "--task", "fever", "--data-dir", task]),
        (task, ["adapt", folder, "--task", "lm_eval:x", "--include-path", task]),
        (edit, ["apply", edit, folder]),
        (folder, ["apply", edit, folder]),
        (folder, ["compress", folder]),
        (data.parent, ["compress", folder, "--data", data]),
        (data.parent, ["compress", folder, "--text", data]),
    ]
    for output, command in commands:
        assert "is read from there; choose another" in refusal(*command, "-o", output, "--overwrite")
    assert contents(tmp_path) == before


def test_nothing_of_others_is_replaced(folder, data, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("1")
    adapt = ["adapt", folder, "--data", data, "--overwrite", "-o"]
    before = contents(tmp_path)
    assert "'notes.txt' is not in its lasertri_files.json" in refusal(*adapt, tmp_path / "mine")
    assert "got a file" in refusal(*adapt, tmp_path / "mine" / "notes.txt")
    assert "got a device" in refusal(*adapt, "/dev/null")
    assert contents(tmp_path) == before


def test_a_result_of_lasertri_is_replaced(folder, data, tmp_path, monkeypatch):
    monkeypatch.setattr("lasertri.result.adaptation.report_obstacle", lambda: "it takes a second")
    out, applied = tmp_path / "out", tmp_path / "applied"
    for more in ([], ["--overwrite"]):
        assert run("adapt", folder, "--data", data, *SMALL, "-o", out, *more).exit_code == 0
        assert run("apply", out, folder, "-o", applied, *more).exit_code == 0
    assert {path.name for path in tmp_path.iterdir()} == {"model", "data", "out", "applied"}


def test_of_figures_nothing_is_lost_where_a_checkpoint_cannot_be_written(folder, data, tmp_path, monkeypatch):
    def save(*_, **__):
        raise LasertriError("no room")

    monkeypatch.setattr("lasertri.model.checkpoint.save", save)
    result = run("compress", folder, "--rank", "0.2", "--data", data, "-o", tmp_path / "out", "--json")
    assert (result.exit_code, json.loads(result.stdout)["output"]) == (1, None)
    assert result.stderr.strip().endswith("lasertri: no room")


def test_room_for_a_checkpoint_is_asked_for_where_one_is_written(folder, data, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 0, 10))
    adapt = ["adapt", folder, "--data", data, "-o", tmp_path / "out", "--targets", "mlp", "--no-progress"]
    for more in (["--merge"], ["--edit", "shrink"], ["--edit", "truncate"]):
        assert "of free disk" in refusal(*adapt, *more)
    assert run(*adapt).exit_code == 0
    assert "of free disk" in refusal("compress", folder, "--data", data, "-o", tmp_path / "small")


def test_every_file_of_samples_is_known_for_one(tmp_path):
    assert TextSource(text=tmp_path).files[-1] == tmp_path
    assert TextSource(data=tmp_path).files[0] == tmp_path
