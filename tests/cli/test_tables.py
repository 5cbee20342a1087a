"""A terminal gets tables; files, pipes and --json get what they always got."""

import io
import json
import sys

import pytest
from typer.testing import CliRunner

from lasertri import adapt
from lasertri.cli import app, tables
from lasertri.cli.app import print_result
from lasertri.demo import MODEL_DIR
from lasertri.demo.recall import samples
from lasertri.result.summary import concluded, found


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


@pytest.fixture(scope="module")
def result():
    options = {"edit": "step", "targets": r"h\.0\.mlp", "progress": False}
    return adapt(str(MODEL_DIR), samples(40, seed=31), held_out=samples(40, seed=32), **options)


def drawn_on(stream, monkeypatch, *, as_json=False):
    monkeypatch.setattr(sys, "stdout", stream)
    print_result(
        {"a": 1}, as_json, "plain", lambda: tables.table(("name", "what", "count"), [("x[red]\x1b[2J", "y", "1")])
    )
    return stream.getvalue()


def test_only_a_terminal_gets_a_table(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    shown = drawn_on(Terminal(), monkeypatch)
    assert "─" in shown
    assert r"x[red]\x1b[2J" in shown  # neither markup nor what a terminal would obey
    assert drawn_on(io.StringIO(), monkeypatch) == "plain\n"
    assert json.loads(drawn_on(Terminal(), monkeypatch, as_json=True)) == {"a": 1}


def test_the_summary_on_a_terminal_says_what_the_text_says(result, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "dumb")  # one without colours
    measured, stream = result.to_dict(), Terminal()
    monkeypatch.setattr(sys, "stdout", stream)
    print_result(measured, False, str(result), lambda: tables.summary(measured))
    shown = stream.getvalue()
    for line in (*found(measured), *concluded(measured)):
        assert line in str(result)
        assert " ".join(line.split())[:60] in " ".join(shown.split())
    for model in ("baseline", "edited"):
        assert f"{measured['held_out'][model]['accuracy']:.1%}" in shown


def test_plain_columns_are_aligned_and_not_cut():
    lines = tables.aligned(("run", "edit", "n"), [("one", "e" * 300, "5"), ("another", "x", "10")]).splitlines()
    assert lines == [f"run      edit{'':296}   n", f"one      {'e' * 300}   5", f"another  x{'':299}  10"]


def test_compare_prints_a_table_json_and_a_page(result, tmp_path, monkeypatch):
    run = lambda *given: CliRunner().invoke(app, ["compare", *map(str, given)])  # noqa: E731
    monkeypatch.setattr("lasertri.result.adaptation.report_obstacle", lambda: "it takes a second")
    for name in ("one", "two"):
        result.save(tmp_path / name)
    folders = [tmp_path / "one", tmp_path / "two"]
    lines = run(*folders).stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["run", "one", "two"]
    assert [each["run"] for each in json.loads(run(*folders, "--json").stdout)["runs"]] == ["one", "two"]
    page = tmp_path / "page.html"
    assert run(*folders, "-o", page).exit_code == 0
    assert "2 runs side by side" in page.read_text()
    for place, why in ((page, "one that is there"), (tmp_path, "a folder")):
        refused = run(*folders, "-o", place)
        assert (refused.exit_code, why in refused.stderr) == (1, True)
    page.write_text("")
    assert run(*folders, "-o", page, "--overwrite").exit_code == 0
    assert page.read_text()
