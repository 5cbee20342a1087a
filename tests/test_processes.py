"""A search that processes share finds what one process finds."""

import hashlib
import json
import math
import os
import re
import subprocess
import sys
import time

import pytest
import torch
import torch.distributed as dist
from killing import without_times
from marks import slow
from stepping import encoded
from team import free_port, team
from tiny import make_model, make_samples, make_tokenizer

from lasertri import adapt
from lasertri.edit.edit import all_applied
from lasertri.errors import LasertriError, NotConvergedError, NotFiniteError
from lasertri.measure.evaluate import evaluate
from lasertri.result.adaptation import SUMMARY_NAME
from lasertri.search import directions, step_search
from lasertri.support.sharing import shared_by

KINDS = {
    "step": ("llama", {"edit": "step", "rank": 8}),
    "compressed": ("llama", {"edit": "step", "rank": 8, "memory_budget": 100_000}),
    "experts": ("qwen3_moe", {"edit": "step", "rank": 8}),
    "truncate": ("gptj", {"blocks": (1, 3), "ratios": (0.5, 0.1, 0.0), "count": 2, "max_edits": 2}),
    "in place": ("qwen3_moe", {"edit": "truncate", "blocks": 1, "ratios": (0.5, 0.1), "count": 4}),
    "taylor": ("gptj", {"edit": "truncate", "score": "taylor", "blocks": 2, "ratios": 0.1, "count": 3, "race": False}),
    "shrink": ("gpt2", {"edit": "shrink"}),
}


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """As each of several processes has: with more, sums are rounded otherwise."""
    threads = torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def search(group, kind):
    """All that one kind of search finds, but the times; in BF16, where what a sample gives depends on its batch."""
    architecture, options = KINDS[kind]
    model = make_model(architecture, dtype=torch.bfloat16)
    samples, tokenizer = make_samples(48), make_tokenizer(architecture)
    result = adapt(model, samples, tokenizer=tokenizer, accept="best", progress=False, group=group, **options)
    with all_applied(result.edits, model):
        weights = [parameter.view(torch.int16).numpy().tobytes() for parameter in model.parameters()]
    return without_times(result.to_dict()), hashlib.sha256(b"".join(weights)).hexdigest()


@pytest.mark.parametrize(
    ("size", "kind"),
    [
        *((2, "step"), slow(3, "step"), slow(2, "compressed"), slow(2, "experts"), slow(3, "truncate")),
        *(slow(2, "in place"), slow(3, "taylor"), slow(2, "shrink")),
    ],
)
def test_processes_find_what_one_finds(size, kind):
    alone = search(None, kind)
    for each in team(size, "test_processes", "search", kind):
        assert each == alone


def stubborn(group):
    """The step found where nothing converges on the layers of process 1."""
    if dist.get_rank(group) == 1:

        def fails(*_, **__):
            raise NotConvergedError("did not converge")

        directions.lowrank_blocks = fails
    samples, tokenizer = make_samples(48), make_tokenizer("llama")
    options = {"edit": "step", "direction": "plain", "accept": "best", "progress": False}
    result = adapt(make_model("llama"), samples, tokenizer=tokenizer, group=group, **options)
    return [target.layer for target in result.edits[0].targets]


@pytest.mark.slow
def test_a_process_on_none_of_whose_layers_a_solver_converges_leaves_them_out_alone():
    for layers in team(2, "test_processes", "stubborn"):
        assert set(layers) == {0, 2}  # of three, dealt in turn


def stops(group):
    """In process 1 alone something goes wrong, where none waits for the others."""
    if dist.get_rank(group) == 1:

        def fails(*_, **__):
            raise LasertriError("expected a step, got an error")

        step_search.decided = fails
    adapt(
        make_model("llama"),
        make_samples(48),
        tokenizer=make_tokenizer("llama"),
        edit="step",
        progress=False,
        group=group,
    )


@pytest.mark.slow
def test_an_error_anywhere_in_a_search_ends_it_in_all():
    for error in team(3, "test_processes", "stops", timeout=120):
        assert type(error) is LasertriError
        assert str(error) == "expected a step, got an error"
        assert error.raised_in_all


def unfit(group):
    """A model that gives NaN."""
    model = make_model("llama")
    torch.nn.init.constant_(model.lm_head.weight, math.nan)
    with shared_by(group):
        evaluate(model, encoded(model, "llama"))


def test_what_is_wrong_with_what_all_have_is_raised_in_all():
    for error in team(2, "test_processes", "unfit"):
        assert type(error) is NotFiniteError
        assert error.raised_in_all


@pytest.fixture
def command(folder, tmp_path):
    rows = [{"prompt": s.prompt, "choices": s.choices, "label": s.label} for s in make_samples(64)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["--accept", "best", "--no-progress"]
    return ["adapt", str(folder), "--data", str(tmp_path / "train.jsonl"), *options]


def launch(program, command, *how, cache):
    """By torchrun."""
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *map(str, [*how, *program, *command])],
        env=os.environ | {"OMP_NUM_THREADS": "1", "LASERTRI_CACHE": str(cache)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


LASERTRI = ("-m", "lasertri")
TWO = ("--standalone", "--nproc-per-node", 2)


def found(folder):
    """What was written, but for seconds."""
    summary = json.loads((folder / SUMMARY_NAME).read_text())
    del summary["environment"]
    return without_times(summary)


def found_alone(command, folder):
    """The same of one process."""
    subprocess.run([sys.executable, *LASERTRI, *command, "-o", str(folder)], check=True, capture_output=True)
    return found(folder)


@pytest.mark.slow
def test_torchrun_writes_what_one_process_writes_and_the_first_speaks_for_all(command, tmp_path):
    one, two, cache = tmp_path / "one node", tmp_path / "two nodes", tmp_path / "cache"
    alone = found_alone(command, tmp_path / "alone")
    run = launch(LASERTRI, [*command, "-o", one], *TWO, cache=cache)
    told, noted = run.communicate()
    assert run.returncode == 0, noted
    assert found(one) == alone
    assert told.count("calibration") == 1
    assert noted.count("reading the model") == 1
    assert not [path for path in cache.rglob("*") if path.is_file()]  # no journal is left
    port = free_port()
    nodes = [
        launch(
            LASERTRI,
            [*command, "-o", two],
            *("--nnodes", 2, "--node-rank", node, "--nproc-per-node", 1),
            *("--master-addr", "127.0.0.1", "--master-port", port),
            cache=tmp_path / f"cache of {node}",
        )
        for node in range(2)
    ]
    for node in nodes:
        _, noted = node.communicate()
        assert node.returncode == 0, noted
    assert found(two) == alone


FORGOTTEN = """
import weakref

from lasertri.cli.launched import launched

with launched() as group:
    import torch._dynamo

    kept = weakref.ref(group)
del group
assert kept() is None
"""


@pytest.mark.slow
def test_nothing_keeps_the_group_until_exit(tmp_path):
    """There gloo aborts, now and then."""
    program = tmp_path / "program.py"
    program.write_text(FORGOTTEN)
    run = launch([program], [], *TWO, cache=tmp_path / "cache")
    _, noted = run.communicate()
    assert run.returncode == 0, noted


@pytest.mark.slow
@pytest.mark.parametrize("mistake", ["no model", "a folder that is not empty"])
def test_a_mistake_is_told_once(command, tmp_path, mistake):
    if mistake == "no model":
        command[1] = str(tmp_path / "no model")
    else:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine").touch()
    run = launch(LASERTRI, [*command, "-o", tmp_path / "out"], *TWO, cache=tmp_path / "cache")
    _, noted = run.communicate()
    assert run.returncode == 1
    assert len(re.findall("^lasertri.*: expected", noted, re.MULTILINE)) == 1, noted
    assert not (tmp_path / "out" / SUMMARY_NAME).exists()


def test_other_commands_share_no_work(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = subprocess.run([sys.executable, *LASERTRI, "ls"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "expected one process for ls, got 2" in done.stderr


WARNED = """
import os

from lasertri.search import step_search

decided = step_search.decided


def warned(*given):
    if os.environ["RANK"] == "1":
        step_search.logger.warning("a layer is left out")
    return decided(*given)


step_search.decided = warned

from lasertri.__main__ import main

main()
"""


@pytest.mark.slow
def test_what_another_process_is_warned_of_is_told_once(command, tmp_path):
    program = tmp_path / "warned.py"
    program.write_text(WARNED)
    run = launch([program], [*command, "--edit", "step"], *TWO, cache=tmp_path / "cache")
    _, noted = run.communicate()
    assert run.returncode == 0, noted
    assert noted.count("a layer is left out") == 1


KILLED = """
import os
import signal

os.environ["LASERTRI_CACHE"] += os.environ["RANK"]  # as on two nodes: one may know what the other does not

from lasertri.support import journal

journal.EVERY, kept, keep = 0, [], journal.Journal.keep


def counted(*given):
    kept.append(given)
    if os.environ["RANK"] == "1" and len(kept) == int(os.environ["DIES_AT"]):
        os.kill(os.getpid(), signal.SIGKILL)
    return keep(*given)


journal.Journal.keep = counted

from lasertri.__main__ import main

main()
"""


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "at"), [("step", 6), ("truncate", 5), ("shrink", 7)])
def test_a_killed_process_ends_all_and_the_same_command_goes_on(command, tmp_path, monkeypatch, kind, at):
    command += ["--edit", kind]
    program = tmp_path / "killed.py"
    program.write_text(KILLED)
    start, out = time.monotonic(), tmp_path / "out"
    monkeypatch.setenv("DIES_AT", str(at))
    run = launch([program], [*command, "-o", out], *TWO, cache=tmp_path / "cache")
    _, noted = run.communicate()
    assert run.returncode != 0, noted
    assert time.monotonic() - start < 300  # none waits for the dead one
    assert not out.exists()
    monkeypatch.setenv("DIES_AT", "0")
    run = launch([program], [*command, "-o", out], *TWO, cache=tmp_path / "cache")
    _, noted = run.communicate()
    assert run.returncode == 0, noted
    assert "going on where this was stopped" in noted
    assert found(out) == found_alone(command, tmp_path / "alone")
