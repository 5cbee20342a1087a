"""Trials without an edited weight: the outputs of a target under many truncations, in one batch of copies.

Truncation is a projection, so a copy's output is `linear_blocks` of the recorded input. Copy 0 keeps the recorded
output: the baseline, under the same rounding as the trials beside it.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import logging
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lasertri.edit.candidate import Candidate
from lasertri.errors import TooLittleMemoryError
from lasertri.factors.budget import free_bytes
from lasertri.factors.store import FactorStore
from lasertri.language.encoding import Batch
from lasertri.language.samples import EncodedSamples
from lasertri.measure.protocol import Advance
from lasertri.model.parallel import all_features, features_here, whole
from lasertri.model.targets import Target
from lasertri.ops import linear_blocks
from lasertri.search.replay import RecordedBatch, Replay, Trace, record
from lasertri.search.trial import TrialReadings, by_target
from lasertri.support.journal import NOTHING, Journal
from lasertri.support.memory import as_memory_allows, halves, is_out_of_memory
from lasertri.support.sharing import ALL, Share, everyones

logger = logging.getLogger(__name__)

# Tokens of a batch of copies on a CPU: beyond, activations leave the caches. From 1024 to 2048 an MLP of 768 × 3072
# took the least time for a token, 9 % less than at 4096; at width 256 there was no difference.
CPU_TOKENS = 2048
CUDA_TOKENS = 1 << 14  # beyond, products take no less time for a token, only memory


class Projected:
    """Tries the candidates that it `supports`, many at once.

    Args:
        samples: replayable ones. The first two are used to see what runs when, and whether replaying gives the model's
            own answers.
        candidates: those to come.
        journal: of these candidates' trials.

    Attributes:
        shortcuts: of the targets before which the model can be replayed.
        supported: numbers of the candidates that it supports.
        tokens: most tokens of a batch of copies; in all processes as many, so that they divide the same batches.
    """

    def __init__(
        self,
        model: nn.Module,
        samples: EncodedSamples,
        candidates: Sequence[Candidate],
        factors: FactorStore,
        journal: Journal = NOTHING,
    ) -> None:
        self.model, self.samples, self.factors, self.journal = model, samples, factors, journal
        several = samples.batches(range(min(2, len(samples))))[:1]
        batch, trace = next(as_memory_allows(several, functools.partial(Trace.of, model)))
        first = {candidate.target: candidate for candidate in reversed(candidates)}
        self.shortcuts = {target: trace.shortcut(target) for target in first}
        others = sum(not self._is_linear(target) for target in first)
        if others:
            logger.info("%d targets are no linear layers: trials start there, with the weight in place", others)
        for target, candidate in first.items():
            find = functools.partial(self._obstacle, candidate)
            try:
                _, reason = next(as_memory_allows([batch], find, what="one row twice"))
            except TooLittleMemoryError as error:
                reason = str(error)
            if reason is not None:
                logger.warning("%s: trials run with the weight in place, which is slower: %s", target, reason)
                del self.shortcuts[target]
        for target in set[Target]().union(*everyones(first.keys() - self.shortcuts.keys())):  # of any process
            self.shortcuts.pop(target, None)
        self.supported = {i for i, candidate in enumerate(candidates) if self.supports(candidate)}
        self._longest = samples.longest
        most = max(1, _free_bytes(model, factors) // max(1, trace.token_bytes))
        on_cuda = any(parameter.is_cuda for parameter in model.parameters())
        most = min(most, CUDA_TOKENS if on_cuda else CPU_TOKENS)
        # as large as before, whatever is free by now: a sample's batch is part of how its figures are rounded
        self.tokens = min(everyones(int(journal.of("tokens", lambda: [torch.tensor([most])])[0])))
        self._fitting = self.tokens

    def supports(self, candidate: Candidate) -> bool:
        """Whether its trials are projections, of a linear layer that can be replayed."""
        return candidate.target in self.shortcuts and self._is_linear(candidate.target) and not candidate.compat

    def _is_linear(self, target: Target) -> bool:
        """Whether its module's output is its weight, or rows of it, times the input."""
        return target.expert is None and isinstance(self.model.get_submodule(target.module), nn.Linear | Conv1D)

    def run(
        self,
        candidates: Sequence[Candidate],
        part: Sequence[int],
        advance: Advance = lambda _: None,
        share: Share = ALL,
    ) -> TrialReadings:
        """See `Runner.run`."""
        readings, numbers = TrialReadings.empty(self.samples, len(candidates)), by_target(candidates)
        for mine in numbers.values():
            mine.sort(key=lambda i: candidates[i].blocks)  # those that share factors stand together
        most = max(self._copies(len(mine), self.tokens) for mine in numbers.values())
        batches = self.samples.batches(part, tokens=max(1, self.tokens // most))
        dealt = share([(number, target) for number in range(len(batches)) for target in numbers])
        for number, group in itertools.groupby(dealt, key=lambda unit: unit[0]):
            run = functools.partial(self._run, candidates, {target: numbers[target] for _, target in group}, advance)
            # the estimate may be too high, or another program takes memory
            for (_, fitting), found in as_memory_allows(self._pieces(batches[number]), run, self._fewer):
                readings.update(range(len(candidates)), found)
                self._fitting = fitting
        return readings

    def _pieces(self, batch: Batch) -> list[tuple[Batch, int]]:
        """A batch as it fitted before, with the tokens of its copies."""
        pieces = [(batch, self.tokens)]
        while pieces[0][1] > self._fitting:
            pieces = [piece for part in pieces for piece in self._fewer(part)]
        return pieces

    def _fewer(self, part: tuple[Batch, int]) -> list[tuple[Batch, int]]:
        """A batch's halves, with half as many tokens, as long as these hold the longest row twice."""
        batch, tokens = part
        if tokens <= 2 * self._longest:
            return []
        return [(piece, tokens // 2) for piece in halves(batch) or [batch]]

    def _run(
        self,
        candidates: Sequence[Candidate],
        numbers: Mapping[Target, Sequence[int]],
        advance: Advance,
        part: tuple[Batch, int],
    ) -> TrialReadings:
        """A batch under the candidates of these numbers, in copies of so many tokens at most."""
        batch, tokens = part
        readings = TrialReadings.empty(self.samples, len(candidates))
        recorded = RecordedBatch(self.model, batch, [self.shortcuts[target] for target in numbers])
        readings.baseline.record(batch, *self.journal.of(("baseline", recorded.entries), recorded.read))
        for target, mine in numbers.items():
            copies = self._copies(len(mine), tokens)
            replay = functools.cache(functools.partial(recorded.replay, self.shortcuts[target], copies))
            for start in range(0, len(mine), copies - 1):
                numbered = mine[start : start + copies - 1]
                chunk = [candidates[i] for i in numbered]
                log_probs, greedy = self.journal.of(
                    (chunk, recorded.entries), functools.partial(self._tried, chunk, replay, copies)
                )
                for copy, i in enumerate(numbered, start=1):
                    readings.edited[i].record(batch, log_probs[copy], greedy[copy])
                    readings.beside[i].record(batch, log_probs[0], greedy[0])
                advance(len(chunk) * len(batch.entry))
        return readings

    def _tried(self, chunk: Sequence[Candidate], replay: Callable[[], Replay], copies: int) -> list[Tensor]:
        """What the model gives without an edit, and with each of these candidates."""
        outputs = self._outputs(chunk, replay(), copies)
        return [given[: 1 + len(chunk)] for given in replay().read(self.model, outputs)]

    def _copies(self, count: int, tokens: int) -> int:
        """Copies in a batch of a target with so many candidates: as few batches as the tokens allow, evenly filled."""
        most = max(1, tokens // self._longest - 1)
        return 1 + -(-count // -(-count // most))

    def _outputs(self, chunk: Sequence[Candidate], replay: Replay, copies: int) -> Tensor:
        """What their target gives in every copy: its recorded output, then each candidate's; as padding the former."""
        target = chunk[0].target
        weight, shards, rows = target.whole(self.model), target.shards(self.model), slice(*(target.rows or (None,)))
        bias = getattr(self.model.get_submodule(target.module), "bias", None)
        bias = None if bias is None else whole(bias)[rows]
        inputs = all_features(replay.input.to(weight.device), 1, shards)
        outputs = replay.output.repeat(copies, *[1] * replay.output.dim())
        done = 1
        for key, group in itertools.groupby(chunk, key=lambda candidate: candidate.factors_key):
            ratios, (_, _, dimension) = [candidate.ratio for candidate in group], key
            tried = linear_blocks(
                inputs,
                weight,
                bias,
                **({"ratios": ratios} if dimension is None else {"ranks": [dimension] * len(ratios)}),
                factors=self.factors.of(*key),
                projected=self.factors.projected(*key),
                backend=self.factors.backend,
            )
            outputs[done : done + len(ratios), ..., rows] = features_here(tried, 0, shards)
            done += len(ratios)
        return outputs

    def _obstacle(self, candidate: Candidate, batch: Batch) -> str | None:
        """Why a target's trials cannot replay the model, or None: at all ranks they must give what it gives."""
        shortcut = self.shortcuts[candidate.target]
        if shortcut.calls != 1:
            return f"its module runs {shortcut.calls} times in one forward pass"
        recording = record(self.model, batch, [shortcut])
        expected, _ = recording.read
        replay, outputs = Replay(recording, shortcut, 2), None
        if self.supports(candidate) and not candidate.clustered:  # a cluster has not all ranks
            outputs = self._outputs([dataclasses.replace(candidate, ratio=1.0)], replay, 2)
        try:
            found, _ = replay.read(self.model, outputs)
        except RuntimeError as error:  # outputs whose rows are not first, as in Llama 4
            if is_out_of_memory(error):
                raise
            return f"replaying what runs before it fails: {error}"
        tolerance = torch.finfo(candidate.target.parameter(self.model).dtype).eps ** 0.5 * expected.abs().clamp(min=1)
        if bool(((found - expected).abs() <= tolerance).all()) or not expected.isfinite().all():
            return None
        return "replaying what runs before it does not give the model's own answers"


def _free_bytes(model: nn.Module, factors: FactorStore) -> int:
    """Memory for activations: what the device has left, on a CPU what the memory budget has left."""
    devices = {parameter.device for parameter in model.parameters()}
    cuda = [device for device in devices if device.type == "cuda"]
    if not cuda:
        return factors.budget.free + factors.budget.workspace
    return min(7 * free_bytes(device) // 10 for device in cuda)
