"""What cannot be printed costs no result: it is saved first, and streams that fail are passed over."""

import errno
import io
import json
import sys

import pytest
from tiny import make_samples
from typer.testing import CliRunner

from lasertri.cli import app, streams
from lasertri.cli.streams import Stream
from lasertri.result.adaptation import SUMMARY_NAME

SMALL = ["--blocks", "1", "--ratios", "0.5", "-q", "1", "--accept", "best", "--no-progress"]


NO_SPACE = OSError(errno.ENOSPC, "No space left on device")


class Full(io.StringIO):
    """Such as `/dev/full`."""

    def __init__(self, failure=NO_SPACE):
        super().__init__()
        self.raised = failure

    def write(self, _):
        raise self.raised


@pytest.fixture
def command(folder, tmp_path):
    rows = [{"prompt": s.prompt, "choices": s.choices, "label": s.label} for s in make_samples(44)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ["adapt", str(folder), "--data", str(tmp_path / "train.jsonl"), *SMALL, "-o", str(tmp_path / "out")]


@pytest.mark.parametrize("charset", ["ascii", "cp1252"])
def test_what_a_stream_cannot_encode_is_replaced(command, tmp_path, charset):
    result = CliRunner(charset=charset).invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "(? = 0.5)" in result.stdout
    assert (tmp_path / "out" / SUMMARY_NAME).exists()


@pytest.mark.parametrize(("failure", "said"), [(NO_SPACE, True), (BrokenPipeError(), False)])
def test_a_result_is_saved_whatever_becomes_of_standard_output(command, tmp_path, monkeypatch, failure, said):
    kept = []  # whose end would close what is read below

    def guard():
        streams.guard()
        kept.append(sys.stdout._stream)
        sys.stdout._stream = Full(failure)

    monkeypatch.setattr(sys.modules["lasertri.cli.app"], "guard", guard)
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert ("standard output cannot be written: " in result.stderr) == said
    assert f"wrote {tmp_path / 'out'}" in result.stderr
    assert (tmp_path / "out" / SUMMARY_NAME).exists()


def test_a_folder_that_cannot_be_written_costs_no_figures(command, tmp_path, monkeypatch):
    def save(*_, **__):
        raise NO_SPACE

    monkeypatch.setattr("lasertri.edit.truncation.Truncation.save", save)
    monkeypatch.setattr("lasertri.method.preflight", lambda _: None)
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 1
    assert "held-out difference" in result.stdout
    assert "writing failed: No space left on device" in result.stderr


def test_after_a_failure_nothing_more_is_written():
    stream = Stream(Full())
    assert stream.write("one") == 3
    assert isinstance(stream.failure, OSError)
    stream.write("two")
    stream.flush()
    closed = Stream(io.StringIO())
    closed.close()
    closed.write("one")
    assert isinstance(closed.failure, ValueError)
