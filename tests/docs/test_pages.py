"""What README and pages say is so: blocks run or are read, commands and options exist, files are there."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import typer
from newcomer import furnish
from pages import PAGES, ROOT, blocks, commands, inline_code

from lasertri import as_samples
from lasertri.cli import app

COMMANDS = typer.main.get_command(app).commands
OPTIONS = {
    flag
    for command in COMMANDS.values()
    for option in command.params
    for flag in [*option.opts, *option.secondary_opts]
}
OF_OTHERS = {  # programs that the pages name
    *("--enable-lora", "--max-lora-rank", "--lora-modules"),  # vLLM
    *("--index-url", "--no-build-isolation", "--no-deps"),  # pip
    *("--benchmark-only", "--no-gpu", "--install-completion", "--help"),  # pytest, benchmarks.gpu, typer
}
FILE = re.compile(r"(?:benchmarks|docs|examples|lasertri|tests)/[\w./-]+\.\w+|\w+\.(?:toml|md)")
NOT_OURS = {"run.toml"}

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
with_python = [page for page in PAGES if blocks(page, "python")]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory, whose modules are found."""
    known = set(sys.modules)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in sys.modules.keys() - known:
        if name.split(".")[0] in ("laser", "rmt_laser", "trackio"):
            del sys.modules[name]


@pytest.mark.parametrize(
    "page",
    [page if page.stem == "README" else pytest.param(page, marks=pytest.mark.slow) for page in with_python],
    ids=lambda page: page.stem,
)
def test_the_python_of_a_page_runs_from_top_to_bottom(page, folder):
    furnish(folder)
    if page.stem == "extension":
        pytest.importorskip("kernels.load", reason="pip install 'lasertri[dev]'")
        subprocess.run([sys.executable, "-m", "hub_kernel.make", folder / "lasertri-kernel"], cwd=ROOT, check=True)
    names = {"__name__": "__main__"}
    for block in blocks(page, "python"):
        exec(compile("\n" * block.line + block.text, page, "exec"), names)


@every_page
def test_every_block_is_of_a_kind_that_is_looked_at(page):
    looked_at = sum(len(blocks(page, language)) for language in ("python", "json", "toml", "", "text", "mermaid"))
    assert page.read_text(encoding="utf-8").count("\n```") == 2 * looked_at
    for block in blocks(page, "python"):
        compile("\n" * block.line + block.text, page, "exec")


@every_page
def test_the_samples_of_a_page_are_samples(page):
    for block in blocks(page, "json"):
        assert as_samples([json.loads(line) for line in block.text.splitlines()])


@every_page
def test_the_commands_of_a_page_are_read(page, folder):
    for block in blocks(page, "toml"):
        assert tomllib.loads(block.text)
        (folder / "run.toml").write_text(block.text)
    for program, *words in commands(page):
        if program == "lasertri" and words and words[0] in COMMANDS:
            COMMANDS[words[0]].make_context(words[0], words[1:] or example(words[0]))
        elif program == "lasertri":
            assert set(words) <= {"--install-completion"}


def example(name):
    """Words that a command cannot do without, where the page names it alone."""
    needed = {"adapt": ["MODEL"], "apply": ["EDIT", "MODEL", "-o", "OUT"], "eval": ["MODEL"]}
    return (needed | {"compress": ["MODEL", "-o", "OUT"], "reproduce": ["--table", "1"]}).get(name, [])


@every_page
def test_the_options_of_a_page_exist(page):
    named = [re.sub(r"^(?:python|pytest|mkdocs|vllm|torchrun)\s.*", "", code) for code in inline_code(page)]
    used = {option for code in named for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+", code)}
    assert used <= OPTIONS | OF_OTHERS


@every_page
def test_the_files_and_modules_of_a_page_exist(page):
    text = page.read_text(encoding="utf-8")
    for name in {found for code in inline_code(page) for found in FILE.findall(code)} - NOT_OURS:
        assert (ROOT / name).exists() or "/" not in name, name
    for module in re.findall(r"python -m ((?:benchmarks|hub_kernel|lasertri)[\w.]*)", text):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module
    for script in re.findall(r"python ((?:benchmarks|examples)/\w+\.py)", text):
        assert (ROOT / script).exists(), script


def test_the_links_of_the_readme_lead_somewhere():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (ROOT / link).exists(), link


def test_the_readme_is_short_and_has_the_two_commands_of_a_newcomer():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 130
    assert "pip install -c constraints.txt '.[report]' && lasertri demo" in lines
    assert "pip install -c constraints.txt '.[test]' && pytest -n auto" in lines


def test_every_command_is_explained():
    explained = {words[1] for words in commands(ROOT / "docs/commands.md") if words[0] == "lasertri"}
    assert COMMANDS.keys() <= explained


def test_every_record_is_explained():
    explained = (ROOT / "docs/benchmarks.md").read_text(encoding="utf-8")
    records = [path.name for path in (ROOT / "benchmarks/results").iterdir() if path.is_file()]
    assert [name for name in records if name not in explained] == []


def test_pages_are_found():
    assert len(PAGES) > 10
    assert Path(ROOT / "docs/index.md") in PAGES
