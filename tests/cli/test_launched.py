"""Processes that a launcher has started wait for one another, and one that only seems to be among them is told so."""

from datetime import timedelta

import pytest
import torch.distributed as dist

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


def test_a_number_of_processes_without_a_launcher_is_refused(two, monkeypatch):
    monkeypatch.delenv("MASTER_ADDR")
    with pytest.raises(LasertriError, match="MASTER_ADDR is not set; start them with torchrun"), launched():
        pass
