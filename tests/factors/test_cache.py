"""Factors and checksums that outlive a process: found again, never wrong, bounded, and never in the way."""

import errno
import itertools
import json
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
from lasertri.support.checksum import weight_sha256

SHA = "ab" * 32
LATER = itertools.count(1)


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


def stored(kept, sha=SHA, rows=12, columns=8):
    """Store small factors; give back their key, themselves and their file."""
    partition = Partition.consecutive(rows, 3)
    key, factors = FactorKey(sha, False, partition, columns, "gram", torch.float32), made(partition, columns)
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


def rewrite(path, content):
    """Change a file as one written later would be, however coarse the clock."""
    path.write_bytes(content)
    later = path.stat().st_mtime_ns + 10**9 * next(LATER)
    os.utime(path, ns=(later, later))


def used_at(path, seconds):
    os.utime(path, ns=(seconds * 10**9, path.stat().st_mtime_ns))


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
    key = FactorKey(SHA, True, partition, columns, "gram", dtype)
    assert kept.load(key) is None
    kept.store(key, factors)
    assert_same(kept.load(key), factors)
    assert_same(FactorCache.default().load(key), factors)


def test_another_key_is_another_entry(kept):
    key, factors, _ = stored(kept)
    others = [
        key._replace(weight_sha256="cd" * 32),
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
        rewrite(path, bytes(bad))
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
    rewrite(path, damage(path.read_bytes()))
    assert kept.load(key) is None
    assert not path.exists()
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "damaged file; it is computed again" in caplog.text
    kept.store(key, factors)
    assert_same(kept.load(key), factors)


def test_the_entry_of_another_key_under_this_name_is_deleted(kept):
    key, _, path = stored(kept)
    _, _, other = stored(kept, sha="cd" * 32)
    path.write_bytes(other.read_bytes())
    assert kept.load(key) is None
    assert not path.exists()


def test_content_is_hashed_once_until_the_file_changes(kept, monkeypatch):
    key, factors, path = stored(kept)
    calls = []
    monkeypatch.setattr(cache, "_content_sha256", lambda t, _f=cache._content_sha256: calls.append(1) or _f(t))
    for _ in range(3):
        assert_same(FactorCache.default().load(key), factors)
    assert len(calls) == 1
    rewrite(path, path.read_bytes())
    assert_same(kept.load(key), factors)
    assert len(calls) == 2
    (kept.directory / cache.MEMORY_NAME).write_text("{broken")
    assert_same(kept.load(key), factors)
    assert len(calls) == 3


def test_changed_values_of_the_same_size_are_detected(kept):
    key, _, path = stored(kept)
    assert kept.load(key) is not None
    good = path.read_bytes()
    rewrite(path, good[:-8] + bytes(8))
    assert kept.load(key) is None


def test_loading_leaves_the_time_of_writing(kept):
    key, _, path = stored(kept)
    os.utime(path, ns=(0, 12_345_678_901))
    assert kept.load(key) is not None
    assert path.stat().st_mtime_ns == 12_345_678_901
    assert path.stat().st_atime > 1e9


def test_the_least_recently_used_go_first_and_the_limit_holds(kept):
    size = stored(kept)[2].stat().st_size
    kept.limit = 3 * size
    (first, _, a), (_, _, b), (_, _, c) = (stored(kept, sha=f"{i}" * 64) for i in (1, 2, 3))
    for seconds, path in enumerate((a, b, c)):
        used_at(path, seconds + 100)
    assert entries(kept) == sorted((a, b, c)), "the fourth, stored first, is gone"
    assert kept.load(first) is not None
    _, _, d = stored(kept, sha="4" * 64)
    assert entries(kept) == sorted((a, c, d))
    kept.limit = size
    _, _, e = stored(kept, sha="5" * 64)
    assert entries(kept) == [e]


def test_an_entry_over_the_limit_is_not_stored_and_evicts_nothing(kept):
    _, _, small = stored(kept)
    kept.limit = small.stat().st_size
    key, _, large = stored(kept, rows=60, columns=40)
    assert large is None
    assert kept.load(key) is None
    assert entries(kept) == [small]


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
    assert (FactorCache().directory, FactorCache().limit) == (tmp_path / "home" / ".cache" / "lasertri", 2**34)
    assert not list(tmp_path.iterdir()), "asking writes nothing"


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
        tensor = torch.ones(3)
        assert kept.sha256("w", tensor, [tmp_path / "file"]) == weight_sha256(tensor)
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
    key = FactorKey(SHA, False, partition, 40, "gram", torch.float32)
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
    assert {path.name for path in kept.directory.iterdir()} == {entries(kept)[0].name, cache.MEMORY_NAME}
    assert_same(kept.load(key), factors)


@pytest.fixture
def hashed(monkeypatch):
    """How often a tensor was hashed."""
    calls = []
    monkeypatch.setattr(cache, "weight_sha256", lambda tensor: calls.append(1) or weight_sha256(tensor))
    return calls


def test_a_checksum_is_computed_once_for_files_that_stay(kept, hashed, tmp_path):
    files = [tmp_path / "b", tmp_path / "a"]
    for path in files:
        path.write_text(path.name)
    tensor = torch.randn(5, 7)
    expected = weight_sha256(tensor)
    assert kept.sha256("w", tensor, files) == expected
    assert FactorCache.default().sha256("w", tensor, files[::-1]) == expected
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert kept.sha256("w", tensor, [files[0], tmp_path / "link"]) == expected
    assert len(hashed) == 1
    for other in (("v", tensor), ("w", tensor.double()), ("w", tensor[:4])):
        assert kept.sha256(*other, files) == weight_sha256(other[1])
    assert len(hashed) == 4
    changed = tensor + 1
    rewrite(files[0], b"b")
    assert kept.sha256("w", changed, files) == weight_sha256(changed)
    assert len(hashed) == 5


@pytest.mark.parametrize("files", [None, [], ["missing"]])
def test_a_checksum_with_no_files_to_vouch_for_it_is_always_computed(kept, hashed, tmp_path, files, caplog):
    paths = files and [tmp_path / name for name in files]
    for i in range(2):
        tensor = torch.full((3,), float(i))
        assert kept.sha256("w", tensor, paths) == weight_sha256(tensor)
    assert len(hashed) == 2
    assert not caplog.records


def test_the_memory_is_bounded_and_forgets_the_oldest(kept, hashed, monkeypatch, tmp_path):
    monkeypatch.setattr(cache, "REMEMBERED", 3)
    (tmp_path / "a").write_text("1")
    tensor = torch.ones(3)
    for name in "pqrst":
        kept.sha256(name, tensor, [tmp_path / "a"])
    assert len(json.loads((kept.directory / cache.MEMORY_NAME).read_text())) == 3
    kept.sha256("t", tensor, [tmp_path / "a"])
    assert len(hashed) == 5
    kept.sha256("p", tensor, [tmp_path / "a"])
    assert len(hashed) == 6


@pytest.mark.parametrize("content", ["", "{broken", "[1, 2]", "\ud800"])
def test_a_damaged_memory_costs_only_time(kept, hashed, tmp_path, content):
    (tmp_path / "a").write_text("1")
    kept.directory.mkdir(parents=True)
    (kept.directory / cache.MEMORY_NAME).write_bytes(content.encode("utf-16", "surrogatepass"))
    for _ in range(2):
        assert kept.sha256("w", torch.ones(3), [tmp_path / "a"]) == weight_sha256(torch.ones(3))
    assert len(hashed) == 1
