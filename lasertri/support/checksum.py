"""A tensor known by its content."""

from __future__ import annotations

import hashlib
import importlib.util

import torch
from torch import Tensor

WORDS = {4: torch.int32, 2: torch.int16, 1: torch.uint8}
CHUNK = 1 << 20  # words with keys of their own, so that making these takes little
TOGETHER = 8  # chunks summed at once


def weight_sha256(stored: Tensor) -> str:
    """Checksum of a tensor's values, in row-major order, that others can make again and trust."""
    return hashlib.sha256(_bytes(stored)).hexdigest()


def tensor_hash(stored: Tensor) -> str:
    """128 bits of the same values (XXH3), as fast as memory is read: against accidents, not against forgery."""
    import xxhash  # whoever needs it does without where it is not installed

    return xxhash.xxh3_128_hexdigest(_bytes(stored))


def content_key(weight: Tensor) -> str:
    """Equal for equal values on one kind of device, and made there: against accidents, not against forgery."""
    if weight.is_cuda:
        return weight_fingerprint(weight)
    return tensor_hash(weight) if importlib.util.find_spec("xxhash") else weight_sha256(weight)


def weight_fingerprint(weight: Tensor) -> str:
    """128 bits of a weight's values, made where the weight is: it tells weights apart, and proves nothing.

    Two sums Σ kᵢ xᵢ modulo 2⁶⁴ over the stored words, with odd pseudo-random keys: no change of one word goes unseen.
    Words are of 32 bits at most, so that bits of the keys are left to tell places apart whatever bit changed. A key is
    the product of a chunk's and of a place's within it.
    """
    stored = weight.detach().contiguous().flatten().view(torch.uint8)
    if stored.storage_offset() % max(WORDS):
        stored = stored.clone()
    words = stored.view(next(dtype for size, dtype in WORDS.items() if len(stored) % size == 0))
    chunk = max(1, min(CHUNK, len(words)))
    whole = len(words) // chunk * chunk
    parts = *words[:whole].view(-1, chunk).split(TOGETHER), words[whole:].unsqueeze(0)
    keys = _keys(chunk, (0, 1), weight.device).unsqueeze(1)
    sums = torch.cat([(part * keys[..., : part.shape[1]]).sum(-1) for part in parts], dim=1)
    totals = (sums * _keys(sums.shape[1], (2, 3), weight.device)).sum(-1)
    return "".join(f"{total % 2**64:016x}" for total in totals.tolist())


def _keys(count: int, seeds: tuple[int, int], device: torch.device) -> Tensor:
    """Odd 64-bit numbers `[2, count]` that look random, by multiplying and folding (Steele, Lea and Flood, 2014).

    Args:
        seeds: below 4, other ones for other keys.
    """
    numbers = 4 * torch.arange(1, count + 1, device=device) + torch.tensor(seeds, device=device).unsqueeze(1)
    key = numbers * -0x61C8864680B583EB
    key = (key ^ (key >> 30)) * -0x40A7B892E31B1A47
    key = (key ^ (key >> 27)) * -0x6B2FB644ECCEEE15
    return (key ^ (key >> 31)) | 1


def _bytes(stored: Tensor) -> memoryview:
    return stored.detach().cpu().contiguous().view(torch.uint8).numpy().data
