"""The real `adapt`, run on a GPT-J of a 64th of the width, and counted as if it had all of it."""

from __future__ import annotations

import functools
import logging
import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

import lasertri.edit.origin
import lasertri.edit.truncation
import lasertri.factors.cache
import lasertri.factors.factoring
import lasertri.method
import lasertri.model.identity
from benchmarks.adapt import random_gptj
from benchmarks.roofline.work import Amount, Counting, Kind, Ops, Shape, Work, add, panels_of
from lasertri import Sample, adapt
from lasertri.factors.cache import FactorCache
from lasertri.model.targets import Target
from lasertri.ops import compress_tokens, whiten
from lasertri.search import directions, projected, shrink_search, step_search, tokens
from lasertri.search.cross_fit import CrossFit
from lasertri.search.tokens import Room, weight_gradient
from lasertri.support import checksum
from lasertri.support.timing import Clock

SCALE = 64
LAYERS, HEADS, WIDTH, VOCABULARY = 28, 16, 4096, 50400  # GPT-J-6B
COUNTED_VOCABULARY = 448
TOKENS, SAMPLES = 40, 100  # a prompt's, as many as FEVER's have; calibration, and as many held out
EDITS = ("step", "shrink", "truncate")
# sizes that only the model's dimensions have in this run: no rank, and no count of tokens, rows or answers, is one
SIZES = {WIDTH // SCALE: WIDTH, 4 * WIDTH // SCALE: 4 * WIDTH, COUNTED_VOCABULARY: VOCABULARY}
HEAD = {WIDTH // HEADS // SCALE: WIDTH // HEADS}
BLOCKS = {size // SCALE: size for size in (2 * WIDTH, WIDTH // 2, WIDTH // 4)}  # rows of a part of an MLP's
RANKED = 16  # K that targets of the full width are ranked at; and a block's rows, in the narrow model

Phases = dict[str, Work]


def full(shape: Shape) -> Shape:
    """What a tensor's shape is at full width: of the last two dimensions those that are the model's are widened."""
    widened = [(SIZES | BLOCKS).get(size, size) for size in shape[-2:]]
    if shape[-2:-1] == (RANKED,) and (shape[-1] != RANKED or shape[-3:-2] not in ((), (RANKED,))):
        widened[0] = RANKED  # blocks, or a batch's rows
    if shape[-1:] == (RANKED,) and shape[-2:-1] != (RANKED,) and widened[:-1] != list(shape[-2:-1]):
        widened[1] = RANKED  # of a pair of factors
    if not any(size in SIZES for size in shape[-2:]):
        widened = [HEAD.get(size, wide) for size, wide in zip(shape[-2:], widened, strict=True)]
    return *shape[:-2], *widened


class Run:
    """What is counted, by phase: those of `Adaptation.seconds`, a step's sizes apart, and what comes before."""

    def __init__(self) -> None:
        self.phases: Phases = {}
        self.phase, self.sizes = "before", 0

    @property
    def work(self) -> Work:
        return self.phases.setdefault(self.phase, {})

    @contextmanager
    def within(self, phase: str) -> Iterator[None]:
        before, self.phase = self.phase, phase
        try:
            yield
        finally:
            self.phase = before

    def host(self, name: str, size: int, scale: int = SCALE**2) -> None:
        """Bytes that the host hashes, reads or writes; of matrices they grow with the square of the width."""
        add(self.work, [(Kind(name), Amount(1, 0, size * scale))])


def count(edit: str, budget: int, *, layers: int = LAYERS, tasks: int = 2) -> list[Phases]:
    """Of tasks on one model, one after the other: by phase, the work of adapting a GPT-J in BF16 on a GPU.

    Ranks below one of the narrow model are none, so that some truncations which would differ at full width are one
    here; and which matrices are tried is as it is with random weights.

    Args:
        budget: bytes of `memory_budget`.
    """
    model = random_gptj.make_model(layers, WIDTH // SCALE, HEADS, COUNTED_VOCABULARY, dtype=torch.bfloat16)
    tokenizer, found = random_gptj.make_tokenizer(COUNTED_VOCABULARY), []
    with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, {"LASERTRI_CACHE": f"{folder}/cache"}):
        ops = Ops(SCALE)
        for task in range(tasks):
            run = Run()
            with (
                _as_on_a_gpu(budget),
                _watched(run),
                _compressing(run, ops),
                Counting(functools.partial(getattr, run, "work"), full, ops),
            ):
                adapt(
                    model,
                    samples(2 * task),
                    held_out=samples(2 * task + 1),
                    tokenizer=tokenizer,
                    journal=Path(folder) / f"journal {task}",
                    edit=edit,
                    **({"scoring_blocks": RANKED} if edit == "truncate" else {}),
                    accept="best",  # so that there is an edit, which is measured
                    memory_budget=budget // SCALE**2,
                    progress=False,
                )
            found.append(_normal(run))
    return found


def samples(seed: int) -> list[Sample]:
    """Two-choice questions of equally many tokens, as questions on FEVER's claims are on average."""
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(300, (SAMPLES, TOKENS), generator=generator).tolist()
    return [
        Sample(" ".join(f"w{word}" for word in row), choices=random_gptj.CHOICES, label=i % 2)
        for i, row in enumerate(words)
    ]


def _normal(run: Run) -> Phases:
    """With one size in the place of all that were tried: how many are depends on what the model has learnt."""
    if run.sizes:
        for amount in run.phases["one size"].values():
            for name, number in vars(amount).items():
                setattr(amount, name, number // run.sizes)
    return run.phases


@contextmanager
def _as_on_a_gpu(budget: int) -> Iterator[None]:
    """Within, what depends on the device or on how much memory there is goes as on a GPU, at the full width."""
    with (
        panels_of(SCALE),
        patch.object(step_search, "budget_for", lambda *_: budget),
        patch.object(step_search, "Room", _FullRoom),
        patch.object(projected, "CPU_TOKENS", projected.CUDA_TOKENS),
        patch.object(projected, "_free_bytes", lambda *_: 1 << 50),
        patch.object(whiten, "BY_PRODUCTS", {"cpu"}),
        patch.dict(directions.STACKED, cpu=directions.STACKED["cuda"]),
        patch.dict(directions.RANKS, {name: rank + 2 for name, rank in directions.RANKS.items()}),  # 64 is a width
    ):
        yield


class _FullRoom(Room):
    """As there is at the full width."""

    @classmethod
    def within(cls, budget: int, model: Any, targets: Sequence[Target], tokens: int, folds: int) -> Room:
        wide = [replace(target, shape=tuple(SCALE * size for size in target.shape)) for target in targets]
        found = Room.within(budget, model, wide, tokens, folds)
        return cls(found.most, found.narrow, found.share)

    def of(self, target: Target) -> int:
        return super().of(replace(target, shape=tuple(SCALE * size for size in target.shape)))


@contextmanager
def _compressing(run: Run, ops: Ops) -> Iterator[None]:
    """Within, tokens are compressed as at the full width, where they are fewer than features."""

    def compressed(inputs: Tensor, deltas: Tensor, most: int) -> tuple[Tensor, ...]:
        add(run.work, ops(compress_tokens, {"inputs": inputs, "deltas": deltas, "most": most}).items())
        with _disable_current_modes():
            sides = compress_tokens(inputs, deltas, most)
            return tuple(torch.nn.functional.pad(side, (0, 0, 0, most - len(side))) for side in sides)

    with patch.object(tokens, "compress_tokens", compressed):
        yield


def _growth(tensor: Tensor) -> int:
    """How many times larger a tensor is at the full width: a matrix, or else a bias, say."""
    return SCALE**2 if tensor.numel() > max(SIZES) else SCALE


@functools.cache
def _of_fingerprint(size: int) -> Amount:
    """What a GPU reads and writes for the fingerprint of so many bytes: by one of fewer, in as many chunks."""
    work, shrink = dict[Kind, Amount](), min(SCALE**2, size // 4)
    with (
        _disable_current_modes(),
        patch.object(checksum, "CHUNK", max(1, checksum.CHUNK // shrink)),
        Counting(lambda: work, lambda shape: shape),
    ):
        checksum.weight_fingerprint(torch.zeros(size // 4 // shrink))
    found = work[Kind("traffic")]
    return Amount(found.calls, 0, found.bytes * shrink)


@contextmanager
def _watched(run: Run) -> Iterator[None]:
    """Within, the run is told its phases, and what the host hashes, reads and writes."""

    class Phased(Clock):
        @contextmanager
        def __call__(self, phase: str) -> Iterator[None]:
            with super().__call__(phase), run.within(phase):
                yield

    measure, load, store = CrossFit.measure, FactorCache.load, FactorCache.store

    def one_size(fit: CrossFit, *arguments: Any) -> Any:
        run.sizes += 1
        with run.within("one size"):
            return measure(fit, *arguments)

    counted = threading.Lock()  # other threads hash, and write

    def loaded(cache: FactorCache, key: Any) -> Any:
        factors = load(cache, key)
        if factors is not None:
            run.host("disk", factors.basis.nbytes)
        return factors

    def stored(cache: FactorCache, key: Any, factors: Any) -> Any:
        with counted:
            run.host("stored", factors.basis.nbytes)
        return store(cache, key, factors)

    def hashing(name: str, make: Callable[..., str], *, aside: bool = True) -> Callable[..., str]:
        def hashed(tensor: torch.Tensor) -> str:
            if not aside and threading.current_thread() is not threading.main_thread():
                return make(tensor)  # before it is written, at a small part of what writing takes
            with counted:
                run.host(name, tensor.nbytes, _growth(tensor))
            return make(tensor)

        return hashed

    def fingerprinted(tensor: torch.Tensor) -> str:
        add(run.work, [(Kind("traffic"), _of_fingerprint(tensor.nbytes * _growth(tensor)))])
        with _disable_current_modes():
            return checksum.content_key(tensor)

    def gradient(deltas: Tensor, inputs: Tensor) -> Tensor:
        """Of tokens in BF16, at its speed."""
        with _disable_current_modes():
            found = weight_gradient(deltas, inputs)
        (*_, m), (*_, count, n), layers = full(deltas.shape), full(inputs.shape), deltas.shape[:-2].numel()
        moved = 2 * count * (m + n) + 4 * m * n
        add(run.work, [(Kind("product", "bfloat16"), Amount(1, layers * 2 * count * m * n, layers * moved))])
        return found

    @contextmanager
    def summed_ahead(model: torch.nn.Module, targets: Sequence[Target]) -> Iterator[dict[Target, str]]:
        """While edits are made, as on a GPU."""
        sha256 = hashing("sha256 ahead", checksum.weight_sha256)
        with run.within("trials"):
            summed = {target: sha256(target.parameter(model)) for target in targets}
        yield summed

    origin, truncation = lasertri.edit.origin, lasertri.edit.truncation
    identity, factoring, cache = lasertri.model.identity, lasertri.factors.factoring, lasertri.factors.cache
    with ExitStack() as stack:
        stack.enter_context(patch.object(lasertri.method, "Clock", Phased))
        stack.enter_context(patch.object(CrossFit, "measure", one_size))
        stack.enter_context(patch.object(step_search, "checksums_ahead", summed_ahead))
        for module in (directions, shrink_search):
            stack.enter_context(patch.object(module, "weight_gradient", gradient))
        stack.enter_context(patch.object(FactorCache, "load", loaded))
        stack.enter_context(patch.object(FactorCache, "store", stored))
        for module in (origin, truncation):
            stack.enter_context(patch.object(module, "weight_sha256", hashing("sha256", module.weight_sha256)))
        stack.enter_context(patch.object(cache, "tensor_hash", hashing("xxh3", cache.tensor_hash, aside=False)))
        for module in (identity, factoring, origin):
            stack.enter_context(patch.object(module, "content_key", fingerprinted))
        logging.getLogger("lasertri").setLevel(logging.ERROR)
        yield
