"""Factors that outlive a process: found again, never wrong, bounded, and never in the way."""

import errno
import logging
import os
import threading
from pathlib import Path

import pytest
import safetensors.torch
import torch

from lasertri import LasertriError, Partition, block_svd
from lasertri.factors import cache
from lasertri.factors.cache import FactorCache, FactorKey

HASH = "ab" * 16


@pytest.fixture(autouse=True)
def no_cache_of_the_user(tmp_path, monkeypatch):
    monkeypatch.setenv("LASERTRI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("LASERTRI_CACHE_SIZE", raising=False)


@pytest.fixture
def kept() -> FactorCache:
    return FactorCache.default()


def made(partition, columns, dtype=torch.float32):
    weight = torch.randn(partition.rows, columns, generator=torch.Generator().manual_seed(0))
    factors = block_svd(weight, blocks=partition)
    return factors._replace(basis=factors.basis.to(dtype))


def stored(kept, weight_hash=HASH, rows=12, columns=8):
    """Store small factors; give back their key, themselves and their file."""
    partition = Partition.consecutive(rows, 3)
    key, factors = FactorKey(weight_hash, False, partition, columns, "gram", torch.float32), made(partition, columns)
    before = set(entries(kept))
    kept.store(key, factors)
    new = set(entries(kept)) - before
    return key, factors, new.pop() if new else None


def entries(kept):
    return sorted(kept.directory.glob("*.safetensors")) if kept.directory.exists() else []


def assert_same(loaded, factors):
    for name in ("basis", "sigma"):
        one, other = getattr(loaded, name), getattr(factors, name)
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    assert loaded.columns == factors.columns
    assert loaded.partition is factors.partition


def used_at(path, seconds):
    os.utime(path, (seconds, seconds))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
@pytest.mark.parametrize(
    "partition",
    [
        Partition.consecutive(12, 3),
        Partition((0, 2, 9, 12)),
        Partition((0, 2, 9, 12), torch.arange(11, -1, -1)),
    ],
    ids=["equal", "uneven", "ordered"],
)
@pytest.mark.parametrize("columns", [5, 20], ids=["tall", "wide"])
def test_factors_come_back_as_they_were(kept, partition, columns, dtype):
    factors = made(partition, columns, dtype)
    key = FactorKey(HASH, True, partition, columns, "gram", dtype)
    assert kept.load(key) is None
    kept.store(key, factors)
    assert_same(kept.load(key), factors)
    assert_same(FactorCache.default().load(key), factors)


def test_another_key_is_another_entry(kept):
    key, factors, _ = stored(kept)
    others = [
        key._replace(weight_hash="cd" * 16),
        key._replace(transposed=True),
        key._replace(partition=Partition((0, 2, 9, 12))),
        key._replace(partition=Partition(key.partition.offsets, torch.arange(12))),
        key._replace(partition=Partition(key.partition.offsets, torch.arange(11, -1, -1))),
        key._replace(columns=9),
        key._replace(backend="reference"),
        key._replace(dtype=torch.float64),
    ]
    assert all(kept.load(other) is None for other in others)
    assert len({k.text for k in (key, *others)}) == len(others) + 1
    assert_same(kept.load(key), factors)


def test_a_format_of_another_version_is_not_read(kept, monkeypatch):
    key, _, _ = stored(kept)
    monkeypatch.setattr(cache, "FORMAT", cache.FORMAT + 1)
    assert kept.load(key) is None


def test_a_partition_of_equal_rows_finds_what_another_stored(kept):
    key, factors, _ = stored(kept)
    again = Partition.consecutive(12, 3)
    assert again is not key.partition
    assert torch.equal(kept.load(key._replace(partition=again)).basis, factors.basis)


def test_factors_under_a_key_that_is_not_theirs_are_an_error(kept):
    key, factors, _ = stored(kept)
    for changes in ({"dtype": torch.float64}, {"columns": 9}, {"partition": Partition((0, 2, 9, 12))}):
        with pytest.raises(LasertriError, match="that the key names, got 8 columns and torch.float32"):
            kept.store(key._replace(**changes), factors)


def test_any_changed_byte_is_a_miss_or_changes_nothing(kept):
    key, factors, path = stored(kept)
    good = path.read_bytes()
    header = 8 + int.from_bytes(good[:8], "little")
    flips = [(place, 1 << bit) for place in range(header) for bit in range(8)]
    flips += [(place, 1 + place % 255) for place in range(header, len(good))]
    missed = 0
    for place, flip in flips:
        bad = bytearray(good)
        bad[place] ^= flip
        path.write_bytes(bytes(bad))
        loaded = kept.load(key)
        missed += loaded is None
        if loaded is None:
            assert not path.exists()
        else:  # white space of the header
            assert_same(loaded, factors)
    assert missed > 0.99 * len(flips)


@pytest.mark.parametrize(
    "damage",
    [
        lambda good: good[: len(good) // 2],
        lambda good: good[:-1],
        lambda good: good + b"\0",
        lambda good: b"",
        lambda good: b"garbage" * 1000,
        lambda good: safetensors.torch.save({"other": torch.ones(3)}),
        lambda good: safetensors.torch.save({"basis": torch.ones(3), "sigma": torch.ones(3)}),
    ],
    ids=["half", "short", "long", "empty", "garbage", "other names", "foreign"],
)
def test_a_damaged_file_is_deleted_with_a_warning_and_can_be_stored_again(kept, caplog, damage):
    key, factors, path = stored(kept)
    assert kept.load(key) is not None
    path.write_bytes(damage(path.read_bytes()))
    assert kept.load(key) is None
    assert not path.exists()
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "damaged file; it is computed again" in caplog.text
    kept.store(key, factors)
    assert_same(kept.load(key), factors)


def test_the_entry_of_another_key_under_this_name_is_deleted(kept):
    key, _, path = stored(kept)
    _, _, other = stored(kept, weight_hash="cd" * 16)
    path.write_bytes(other.read_bytes())
    assert kept.load(key) is None
    assert not path.exists()


def test_changed_values_of_the_same_size_are_detected(kept):
    key, _, path = stored(kept)
    assert kept.load(key) is not None
    good = path.read_bytes()
    path.write_bytes(good[:-8] + bytes(8))
    assert kept.load(key) is None


def test_loading_marks_an_entry_as_used(kept):
    key, _, path = stored(kept)
    used_at(path, 12)
    assert kept.load(key) is not None
    assert path.stat().st_mtime > 1e9


def test_the_least_recently_used_go_first_and_the_limit_holds(kept):
    size = stored(kept)[2].stat().st_size
    kept.limit = 3 * size
    (first, _, a), (_, _, b), (_, _, c) = (stored(kept, weight_hash=f"{i}" * 32) for i in (1, 2, 3))
    for seconds, path in enumerate((a, b, c)):
        used_at(path, seconds + 100)
    assert entries(kept) == sorted((a, b, c)), "the fourth, stored first, is gone"
    assert kept.load(first) is not None
    _, _, d = stored(kept, weight_hash="4" * 32)
    assert entries(kept) == sorted((a, c, d))
    kept.limit = size
    _, _, e = stored(kept, weight_hash="5" * 32)
    assert entries(kept) == [e]


def test_the_limit_holds_with_several_processes(kept):
    size = stored(kept)[2].stat().st_size
    caches = [FactorCache(kept.directory, 100 * size) for _ in range(4)]
    for i in range(35):
        for j, one in enumerate(caches):
            stored(one, weight_hash=f"{i:016}{j:016}")
            assert sum(path.stat().st_size for path in entries(kept)) <= 100 * size
    assert len(entries(kept)) == 100


def test_an_entry_that_vanishes_meanwhile_does_not_keep_others(kept):
    size = stored(kept)[2].stat().st_size
    (kept.directory / ("f" * 64 + ".safetensors")).symlink_to("nowhere")
    kept.limit = 2 * size
    for i in range(4):
        _, _, last = stored(kept, weight_hash=f"{i}" * 32)
    assert last.exists()
    assert sum(path.exists() for path in entries(kept)) == 2


def test_what_a_killed_process_left_is_swept_below_the_limit(kept):
    kept.directory.mkdir(parents=True)
    old, new = (kept.directory / (letter * 64 + ".safetensors." + "d" * 32) for letter in "ab")
    for path in (old, new):
        path.write_bytes(bytes(1000))
    used_at(old, 1)
    _, _, path = stored(kept)
    assert sorted(kept.directory.iterdir()) == sorted([new, path]), "of an hour ago, and one that is being written"


def test_a_file_that_is_written_over_changes_nothing_that_was_read(kept):
    key, factors, path = stored(kept)
    loaded = kept.load(key)
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert_same(loaded, factors)


def test_an_entry_over_the_limit_is_not_stored_and_evicts_nothing(kept):
    _, _, small = stored(kept)
    kept.limit = small.stat().st_size
    key, _, large = stored(kept, rows=60, columns=40)
    assert large is None
    assert kept.load(key) is None
    assert entries(kept) == [small]


def test_a_limit_that_was_lowered_holds(kept):
    _, _, path = stored(kept)
    lower = FactorCache(kept.directory, 0)
    assert stored(lower, weight_hash="1" * 32)[2] is None
    assert not path.exists()


def test_eviction_deletes_no_file_of_another_kind(kept):
    kept.directory.mkdir(parents=True)
    others = [kept.directory / name for name in ("model.safetensors", "a" * 64, "b" * 64 + ".safetensors.bak")]
    for path in others:
        path.write_bytes(bytes(10_000))
    abandoned = kept.directory / ("c" * 64 + ".safetensors." + "d" * 32)
    abandoned.write_bytes(bytes(10_000))
    used_at(abandoned, 1)
    kept.limit = 9_000
    _, _, path = stored(kept)
    assert entries(kept) == sorted([path, others[0]])
    assert all(path.exists() for path in others)
    assert not abandoned.exists(), "what a killed process left"


@pytest.mark.parametrize("value", ["0", "off", "OFF", ""])
def test_the_cache_can_be_turned_off(monkeypatch, value):
    monkeypatch.setenv("LASERTRI_CACHE", value)
    assert FactorCache.default() is None


def test_the_environment_says_where_and_how_much(monkeypatch, tmp_path):
    assert FactorCache.default().directory == tmp_path / "cache"
    assert FactorCache.default().limit == 16 * 2**30
    monkeypatch.setenv("LASERTRI_CACHE_SIZE", "0.5")
    assert FactorCache.default().limit == 2**29
    monkeypatch.setenv("LASERTRI_CACHE", "~/elsewhere")
    assert FactorCache.default().directory == tmp_path / "home" / "elsewhere"
    monkeypatch.delenv("LASERTRI_CACHE")
    assert FactorCache.default().directory == tmp_path / "xdg" / "lasertri"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert FactorCache.default().directory == tmp_path / "home" / ".cache" / "lasertri"
    assert not list(tmp_path.iterdir()), "asking writes nothing"


@pytest.mark.parametrize("chosen", [None, "~/elsewhere", "~nobody-of-this-name/cache"])
def test_where_there_is_no_home_no_folder_is_named_for_it(monkeypatch, tmp_path, caplog, chosen):
    for name in ("HOME", "XDG_CACHE_HOME", "LASERTRI_CACHE"):
        monkeypatch.delenv(name)
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])  # as in a container with a user of no name
    if chosen is not None:
        monkeypatch.setenv("LASERTRI_CACHE", chosen)
    assert FactorCache.default() is None
    assert caplog.text.count("set LASERTRI_CACHE") == 1
    monkeypatch.setenv("LASERTRI_CACHE", str(tmp_path))
    assert FactorCache.default().directory == tmp_path


@pytest.mark.parametrize("value", ["much", "-1", "nan", "inf"])
def test_a_size_that_is_none_is_an_error(monkeypatch, value):
    monkeypatch.setenv("LASERTRI_CACHE_SIZE", value)
    with pytest.raises(LasertriError, match=f"number of GiB such as 16, got '{value}'"):
        FactorCache.default()


def test_a_folder_that_cannot_be_made_only_warns_once(tmp_path, caplog):
    (tmp_path / "file").write_text("1")
    kept = FactorCache(tmp_path / "file" / "cache")
    for _ in range(2):
        key, _, _ = stored(kept)
        assert kept.load(key) is None
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "going on without" in caplog.text


def test_a_full_disk_only_warns_and_leaves_nothing_behind(kept, monkeypatch, caplog):
    def full(path, content):
        with open(path, "wb") as file:
            file.write(content[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    key, _, path = stored(kept)
    assert path is None
    assert kept.load(key) is None
    assert not list(kept.directory.iterdir())
    assert caplog.text.count("No space left on device") == 1


def test_a_folder_that_can_only_be_read_is_read(kept, monkeypatch, caplog):
    key, factors, _ = stored(kept)

    def refuse(*args, **options):
        raise OSError(errno.EROFS, "Read-only file system")

    for name in ("utime", "replace", "mkdir"):
        monkeypatch.setattr(os, name, refuse)
    assert_same(kept.load(key), factors)
    assert caplog.text.count("Read-only file system") == 1


def test_stores_that_race_leave_one_good_file(kept):
    partition = Partition.consecutive(60, 3)
    factors = made(partition, 40)
    key = FactorKey(HASH, False, partition, 40, "gram", torch.float32)
    caches = [FactorCache.default() for _ in range(4)]
    barrier, wrong = threading.Barrier(len(caches)), []

    def work(one):
        barrier.wait()
        for _ in range(20):
            one.store(key, factors)
            loaded = one.load(key)
            if loaded is None or not torch.equal(loaded.basis, factors.basis):
                wrong.append(loaded)

    threads = [threading.Thread(target=work, args=(one,)) for one in caches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert list(kept.directory.iterdir()) == entries(kept)
    assert len(entries(kept)) == 1
    assert_same(kept.load(key), factors)
