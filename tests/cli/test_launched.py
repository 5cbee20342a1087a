"""Processes that a launcher has started wait for one another, and one that only seems to be among them is told so."""

from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from typer.testing import CliRunner

from lasertri.cli import app
from lasertri.cli.launched import launched
from lasertri.errors import LasertriError


@pytest.fixture
def two(monkeypatch):
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)


def test_they_wait_as_long_as_the_first_may_write_and_push(two, monkeypatch):
    given = {}
    monkeypatch.setattr(dist, "init_process_group", lambda _, **options: given.update(options))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    with launched():
        pass
    assert given["timeout"] > timedelta(days=7)


@pytest.mark.parametrize(("parts", "how"), [(True, "cpu:gloo,cuda:nccl"), (False, "gloo")])
def test_parts_of_a_model_tell_each_other_what_is_on_their_gpus(two, monkeypatch, parts, how):
    given = []
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **_: given.append(backend))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    with launched(parts=parts):
        pass
    assert given == [how]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--device", "cpu"], "leave --device out"),
        (["--edit", "truncate", "--save", "factored", "-o", "out"], "have lasertri apply --save factored write it"),
    ],
)
def test_what_does_not_go_with_parts_of_a_model_is_an_error_of_usage(two, options, said):
    result = CliRunner().invoke(app, ["adapt", "model", "--data", "train.jsonl", "--tensor-parallel", *options])
    assert result.exit_code == 2
    assert said in " ".join(result.output.replace("│", "").split())


def test_a_number_of_processes_without_a_launcher_is_refused(two, monkeypatch):
    monkeypatch.delenv("MASTER_ADDR")
    with pytest.raises(LasertriError, match="MASTER_ADDR is not set; start them with torchrun"), launched():
        pass
