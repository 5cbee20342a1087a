"""A search that is killed at any moment and begun again ends with the same result, and does nothing twice."""

import dataclasses
import functools
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
from faults import room_for
from killing import WHENS, Killer, without_times
from marks import slow
from tiny import make_model, make_samples, make_tokenizer
from torch import nn

from lasertri import Objective, Sample, adapt
from lasertri.edit.step import Step
from lasertri.model.checkpoint import CARD_NAME
from lasertri.result.adaptation import REPORT_NAME, SUMMARY_NAME

KINDS = {
    "truncate": {"edit": "truncate", "blocks": (1, 3), "ratios": (0.5, 0.1, 0.0), "count": 2, "max_edits": 2},
    "taylor": {"edit": "truncate", "score": "taylor", "blocks": 2, "ratios": 0.1, "count": 3, "race": False},
    "step": {"edit": "step", "rank": 8},
    "shrink": {"edit": "shrink", "targets": "."},
}


@pytest.fixture
def killer(monkeypatch, tmp_path):
    """Without a preflight, which is the same every time."""
    monkeypatch.setattr("lasertri.method.preflight", lambda problem: None)
    monkeypatch.setenv("LASERTRI_CACHE", str(tmp_path / "cache"))
    return Killer(monkeypatch)


@dataclasses.dataclass
class Search:
    """A search with the same model, samples and options every time, unless some are changed."""

    kind: str
    architecture: str = "gptj"
    samples: int | list[Sample] = 48
    room: float = float("inf")  # tokens that memory holds at once
    forwards: int = 0

    def __call__(self, folder=None):
        model = make_model(self.architecture)
        model.register_forward_pre_hook(self._count)
        room_for(model, self.room)
        samples = make_samples(self.samples) if isinstance(self.samples, int) else self.samples
        options = {"accept": "best", "progress": False} | KINDS[self.kind]
        return adapt(model, samples, tokenizer=make_tokenizer(self.architecture), journal=folder, **options)

    def _count(self, *_):
        self.forwards += 1


def same(one, other):
    """Whether two results have the same figures and edits, bit for bit."""
    if without_times(one.to_dict()) != without_times(other.to_dict()) or len(one.edits) != len(other.edits):
        return False
    for mine, theirs in zip(one.edits, other.edits, strict=True):
        if isinstance(mine, Step):
            pairs = zip(itertools.chain(*mine.factors.values()), itertools.chain(*theirs.factors.values()), strict=True)
        elif hasattr(mine, "changes"):
            pairs = zip(mine.changes.values(), theirs.changes.values(), strict=True)
        else:
            pairs = [(mine.weight, theirs.weight)]
        if mine.targets != theirs.targets or not all(torch.equal(*pair) for pair in pairs):
            return False
    return True


@pytest.mark.parametrize(
    ("kind", "architecture", "when", "at"),
    [
        ("truncate", "gptj", "torn", 16),
        ("step", "gptj", "before", 9),
        ("shrink", "gptj", "after", 7),
        *(slow(kind, "gptj", when, 1 if when == "after" else 2) for kind, when in itertools.product(KINDS, WHENS)),
        *(slow(kind, "qwen2_moe", "torn", 8) for kind in KINDS),
    ],
)
def test_whenever_it_is_killed_the_result_is_the_same(tmp_path, killer, kind, architecture, when, at):
    search = Search(kind, architecture)
    expected = search()
    assert expected.edits
    found, times = killer.until_it_ends(functools.partial(search, tmp_path / "journal"), at, when)
    assert times >= (2 if at > 2 else 14)
    assert same(found, expected)


@pytest.mark.parametrize("kind", ["shrink", slow("step"), slow("truncate"), slow("taylor")])
def test_where_memory_is_short_it_goes_on_with_the_halves(tmp_path, killer, kind):
    search = Search(kind, room=30)
    expected = search()
    found, times = killer.until_it_ends(functools.partial(search, tmp_path / "journal"), 20)
    assert same(found, expected)
    assert times > 1


@pytest.mark.parametrize("kind", ["step", "shrink", slow("truncate"), slow("taylor")])
def test_nothing_is_done_twice(tmp_path, killer, kind):
    search = Search(kind)
    killer.written = 0
    expected = search(tmp_path / "undisturbed")
    records, forwards = killer.written, search.forwards
    found, times = killer.until_it_ends(functools.partial(search, tmp_path / "journal"), 5)
    assert same(found, expected)
    assert times == records // 5
    search.forwards = killer.written = 0
    again = search(tmp_path / "journal")
    assert same(again, expected)
    assert killer.written == 0
    # trials look at how the model runs before they begin
    assert search.forwards == 0 if kind in ("step", "shrink") else search.forwards <= forwards / 3
    assert sum(again.seconds.values()) > 0


@pytest.mark.parametrize("kind", ["step", slow("truncate"), slow("shrink")])
def test_damaged_files_never_change_a_result(tmp_path, killer, kind):
    search, draw = Search(kind), random.Random(0)
    expected = search(tmp_path / "journal")
    for path in (tmp_path / "journal").iterdir():
        content = bytearray(path.read_bytes())
        harm = draw.choice(["none", "flipped", "truncated", "emptied", "gone"])
        if harm == "flipped":
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes({"truncated": content[: draw.randrange(len(content))], "emptied": b""}.get(harm, content))
        if harm == "gone":
            path.unlink()
    search.forwards = 0
    assert same(search(tmp_path / "journal"), expected)
    assert search.forwards > 0


def written_samples():
    """Samples whose answer is looked for in what the model writes."""
    return [Sample(s.prompt, "yes" if s.label else "no", match="contains", window=2) for s in make_samples(48)]


@pytest.mark.parametrize("kind", ["shrink", slow("truncate"), slow("step")])
def test_texts_that_were_written_are_not_written_again(tmp_path, killer, kind):
    search = Search(kind, samples=written_samples())
    expected = search()
    found, times = killer.until_it_ends(functools.partial(search, tmp_path), 6, "torn")
    assert times >= 3
    assert same(found, expected)
    search.forwards = 0
    assert same(search(tmp_path), expected)
    assert search.forwards == 0 or kind == "truncate"


@pytest.mark.parametrize("kind", ["step", slow("truncate"), slow("shrink")])
def test_a_caller_answers_for_an_objective(tmp_path, killer, kind):
    def forward(model, batch):
        calls.append(len(batch))
        return model(torch.stack([x for x, _ in batch]))

    def loss(outputs, batch):
        return nn.functional.cross_entropy(outputs, torch.tensor([y for _, y in batch]), reduction="none")

    def right(outputs, batch):
        return outputs.argmax(-1) == torch.tensor([y for _, y in batch])

    def search(folder=None):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 2)).eval()
        pairs = [(x, int(x.sum() > 0)) for x in torch.randn(60, 6)]
        options = KINDS[kind] | {"targets": ".", "accept": "best", "progress": False, "batch_size": 5}
        return adapt(model, pairs, objective=Objective(forward, loss, right), journal=folder, **options)

    calls = []
    expected = search()
    found, times = killer.until_it_ends(functools.partial(search, tmp_path), 6)
    assert times >= 3
    assert same(found, expected)
    calls.clear()
    assert same(search(tmp_path), expected)
    assert calls == []


def test_the_journal_is_gone_when_the_result_is_saved_and_not_before(tmp_path, killer):
    result = Search("step")(tmp_path / "journal")
    assert list((tmp_path / "journal").iterdir())
    result.save(tmp_path / "out")
    assert list((tmp_path / "journal").iterdir()) == []


AT_ONCE = "from lasertri.support import journal; journal.EVERY = 0; from lasertri.cli import app; app()"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_the_same_command_goes_on_after_any_signal(tmp_path, folder):
    rows = (f'{{"prompt": "{s.prompt}", "choices": ["yes", "no"], "label": {s.label}}}\n' for s in make_samples(60))
    (tmp_path / "train.jsonl").write_text("".join(rows))
    command = [sys.executable, "-c", AT_ONCE, "adapt", folder, "--data", tmp_path / "train.jsonl", "--accept", "best"]
    command += ["--edit", "truncate", "--batch-size", "4"]

    def run(name):
        environment = os.environ | {"OMP_NUM_THREADS": "1", "LASERTRI_CACHE": str(tmp_path / name)}
        heed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        return subprocess.Popen(
            [*command, "-o", tmp_path / f"{name}-out"], stderr=subprocess.PIPE, env=environment, preexec_fn=heed
        )

    def journalled():
        return set(os.listdir(tmp_path / "killed")) if (tmp_path / "killed").exists() else set()

    process = run("undisturbed")
    assert process.wait(timeout=600) == 0, process.communicate()
    for name, new in (("SIGKILL", 9), ("SIGTERM", 6), ("SIGINT", 3)):
        before, process = journalled(), run("killed")
        while len(journalled() - before) < new:
            assert process.poll() is None, process.communicate()
            time.sleep(0.001)
        process.send_signal(getattr(signal, name))
        _, said = process.communicate(timeout=600)
        assert process.returncode == (130 if name == "SIGINT" else -getattr(signal, name)), said
        assert (b"going on where this was stopped" in said) == (name != "SIGKILL")
    process = run("killed")
    assert process.wait(timeout=600) == 0, process.communicate()
    assert_same_files(tmp_path / "undisturbed-out", tmp_path / "killed-out")


def assert_same_files(one, other):
    """But for times, the report with its drawings, and the order of a set that peft writes."""
    files = [sorted(path.relative_to(out) for path in out.rglob("*") if path.is_file()) for out in (one, other)]
    assert files[0] == files[1]
    for file in files[0]:
        ours, theirs = ((out / file).read_bytes() for out in (one, other))
        if file.name == SUMMARY_NAME:
            ours, theirs = (without_times(json.loads(text)) for text in (ours, theirs))
        if file.name == "adapter_config.json":
            ours, theirs = sorted(ours), sorted(theirs)
        if file.name == CARD_NAME:  # it names the folder
            ours, theirs = (text.replace(out.name.encode(), b"") for text, out in ((ours, one), (theirs, other)))
        assert ours == theirs or file.name == REPORT_NAME, file
