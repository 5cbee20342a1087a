"""Weights told apart by their values."""

import itertools

import pytest
import torch

from lasertri.support import checksum
from lasertri.support.checksum import content_key, tensor_hash, weight_fingerprint, weight_sha256

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("identify", [weight_sha256, tensor_hash, weight_fingerprint])
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_changed_value_is_another_weight(identify, dtype):
    weight = torch.randn(17, 13, generator=torch.Generator().manual_seed(0)).to(dtype)
    seen = {identify(weight)}
    for place in range(weight.numel()):
        other = weight.clone()
        other.view(-1)[place] = -other.view(-1)[place]
        seen.add(identify(other))
    seen.add(identify(weight.flip(0)))
    seen.add(identify(torch.cat([weight[1:2], weight[:1], weight[2:]])))
    assert len(seen) == weight.numel() + 3


@pytest.mark.parametrize("identify", [weight_sha256, tensor_hash, weight_fingerprint])
def test_equal_values_are_the_same_weight_however_they_lie(identify):
    weight = torch.randn(17, 13)
    assert identify(weight) == identify(weight.clone()) == identify(weight.mT.contiguous().mT)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.int16, torch.float8_e4m3fn, torch.complex64])
@pytest.mark.parametrize("size", [1, 7, 8])
def test_a_fingerprint_takes_any_dtype_and_size(dtype, size):
    stored = torch.zeros(size, dtype=dtype)
    seen = {weight_fingerprint(stored), weight_fingerprint(torch.zeros(size + 1, dtype=dtype))}
    for place in range(size):
        other = stored.clone()
        other[place] = 1
        seen.add(weight_fingerprint(other))
    assert len(seen) >= size + 1
    beginning = torch.zeros(size + 1, dtype=dtype)
    assert weight_fingerprint(stored) == weight_fingerprint(stored.clone()) == weight_fingerprint(beginning[1:])


def test_a_fingerprint_tells_chunks_apart(monkeypatch):
    monkeypatch.setattr(checksum, "CHUNK", 10)
    monkeypatch.setattr(checksum, "TOGETHER", 3)
    weight = torch.randn(97, generator=torch.Generator().manual_seed(0))
    seen = {weight_fingerprint(weight), weight_fingerprint(weight[:90]), weight_fingerprint(weight[:91])}
    for place in range(97):
        other = weight.clone()
        other[place] += 1
        seen.add(weight_fingerprint(other))
    for chunk in range(1, 9):
        order = torch.arange(97)
        order[:10], order[10 * chunk : 10 * chunk + 10] = torch.arange(10) + 10 * chunk, torch.arange(10)
        seen.add(weight_fingerprint(weight[order]))
    for chunk, place in itertools.combinations(range(9), 2):  # the one of the other, and the other of the one
        order = torch.arange(97)
        order[10 * chunk + place], order[10 * place + chunk] = 10 * place + chunk, 10 * chunk + place
        seen.add(weight_fingerprint(weight[order]))
    assert len(seen) == 3 + 97 + 8 + 36


def test_both_halves_of_a_fingerprint_say_something_of_their_own():
    prints = [weight_fingerprint(torch.randn(97, generator=torch.Generator().manual_seed(i))) for i in range(9)]
    assert len({half for whole in prints for half in (whole[:16], whole[16:])}) == 18
    assert all((checksum._keys(1000, seeds, torch.device("cpu")) % 2 == 1).all() for seeds in ((0, 1), (2, 3)))


@pytest.mark.parametrize("installed", [True, False])
def test_a_key_needs_no_xxhash(installed, monkeypatch):
    weight = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    expected = (tensor_hash if installed else weight_sha256)(weight)
    if not installed:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert content_key(weight) == expected == content_key(weight.clone())
