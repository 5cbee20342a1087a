"""A journal in the folder of the cache is bounded as the factors are."""

import os

import pytest
import torch

from lasertri.factors.cache import FactorCache
from lasertri.factors.journals import journal_folder, open_journal
from lasertri.support import journal
from lasertri.support.journal import NOTHING

RECORD = [torch.zeros(1000)]  # 4,000 bytes and a header


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(journal, "EVERY", 0)


def test_its_files_count_towards_the_limit_and_the_least_recently_used_go(tmp_path):
    cache = FactorCache(tmp_path, limit=10_000)
    (tmp_path / f"{'ab' * 32}.safetensors").write_bytes(bytes(4_000))
    os.utime(tmp_path / f"{'ab' * 32}.safetensors", (1, 1))
    records = open_journal(str(tmp_path), lambda: "work", cache, resume=True)
    for i in range(3):
        records.keep(i, RECORD)
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 10_000
    assert not (tmp_path / f"{'ab' * 32}.safetensors").exists()
    again = open_journal(tmp_path, lambda: "work", cache, resume=True)
    assert [again.recall(i) is not None for i in range(3)] == [False, True, True]


def test_elsewhere_it_is_not_bounded(tmp_path):
    records = open_journal(tmp_path, lambda: "work", FactorCache(tmp_path / "cache", limit=0), resume=True)
    records.keep(1, RECORD)
    assert open_journal(tmp_path, lambda: "work", None, resume=True).recall(1)


def test_without_a_folder_nothing_is_asked():
    assert open_journal(None, lambda: 1 / 0, None, resume=True) is NOTHING


def test_commands_have_theirs_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LASERTRI_CACHE", str(tmp_path))
    assert journal_folder() == tmp_path
    monkeypatch.setenv("LASERTRI_CACHE", "off")
    assert journal_folder() is None
