"""Trials without an edited weight: the outputs of a target under many truncations, in one batch of copies.

Truncation is a projection, so a copy's output comes from the recorded input by `linear_blocks`. Copy 0 keeps the
recorded output: the baseline, under the same rounding as the trials beside it.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lasertri.edit.candidate import Candidate
from lasertri.factors.store import FactorStore
from lasertri.language.encoding import Batch
from lasertri.language.readings import Readings
from lasertri.language.samples import EncodedSamples
from lasertri.measure.protocol import SampleReadings
from lasertri.model.targets import Target
from lasertri.ops import linear_blocks
from lasertri.search.replay import Plan, Replay, plan_replays, recorded

logger = logging.getLogger(__name__)

# Tokens of a batch of copies on a CPU: beyond, activations leave the caches. From 1024 to 2048 an MLP of 768 × 3072
# took the least time for a token, 9 % less than at 4096; at width 256 there was no difference.
CPU_TOKENS = 2048


class ProjectedTrials:
    """Reads the answers under candidates of those targets for which `supports` is true.

    Args:
        samples: the first two are used to see what runs when, and whether replaying gives the model's own answers.
        candidates: those to come.
    """

    def __init__(
        self, model: nn.Module, samples: EncodedSamples, candidates: Sequence[Candidate], factors: FactorStore
    ) -> None:
        self.model, self.samples, self.factors = model, samples, factors
        batch = samples.batches(range(min(2, len(samples))))[0]
        first = {candidate.target: candidate for candidate in reversed(candidates)}
        self.plans, token_bytes = plan_replays(model, batch, list(first))
        others = sum(not self._is_linear(target) for target in self.plans)
        if others:
            logger.info("%d targets are no linear layers: trials start there, with the weight in place", others)
        for target, plan in list(self.plans.items()):
            reason = self._obstacle(batch, first[target], plan)
            if reason is not None:
                logger.warning("%s: trials run with the weight in place, which is slower: %s", target, reason)
                del self.plans[target]
        self._longest = samples.longest
        self.tokens = max(1, _free_bytes(model, factors) // max(1, token_bytes))
        if not any(parameter.is_cuda for parameter in model.parameters()):
            self.tokens = min(self.tokens, CPU_TOKENS)

    def supports(self, candidate: Candidate) -> bool:
        """Whether its trials are projections, of a linear layer that can be replayed."""
        return candidate.target in self.plans and self._is_linear(candidate.target) and not candidate.compat

    def _is_linear(self, target: Target) -> bool:
        """Whether its module's output is its weight, or rows of it, times the input."""
        return target.expert is None and isinstance(self.model.get_submodule(target.module), nn.Linear | Conv1D)

    def read(
        self,
        candidates: Sequence[Candidate],
        numbers: Sequence[int],
        samples: Sequence[int],
        readings: SampleReadings[Any],
        beside: SampleReadings[Any],
        advance: Callable[[int], object] = lambda _: None,
    ) -> Readings:
        """Read these samples' answers under `candidates[i]` into `readings[i]` for every number i.

        Args:
            beside: `beside[i]` takes the baseline's, from the same batches.
            advance: is told how many tokens of answers were read.

        Returns:
            The baseline's own readings, from an ordinary forward pass.
        """
        while True:
            try:
                return self._read(candidates, numbers, samples, readings, beside, advance)
            except torch.OutOfMemoryError:  # the estimate was too high, or another program took memory
                if self.tokens <= 2 * self._longest:
                    raise
                self.tokens //= 2

    def _read(
        self,
        candidates: Sequence[Candidate],
        numbers: Sequence[int],
        samples: Sequence[int],
        readings: SampleReadings[Any],
        beside: SampleReadings[Any],
        advance: Callable[[int], object],
    ) -> Readings:
        by_target: dict[Target, list[int]] = {}
        for i in sorted(numbers, key=lambda i: candidates[i].blocks):
            by_target.setdefault(candidates[i].target, []).append(i)
        copies_of = {target: self._copies(len(mine)) for target, mine in by_target.items()}
        baseline = Readings.empty(self.samples)
        for batch in self.samples.batches(samples, tokens=max(1, self.tokens // max(copies_of.values(), default=1))):
            with recorded(self.model, batch, [self.plans[target] for target in by_target]) as recording:
                baseline.record(batch, *batch.read(self.model))
            for target, mine in by_target.items():
                copies = copies_of[target]
                replay = Replay(batch, recording, self.plans[target], copies)
                for start in range(0, len(mine), copies - 1):
                    chunk = mine[start : start + copies - 1]
                    outputs = self._outputs(target, [candidates[i] for i in chunk], replay, copies)
                    log_probs, greedy = replay.read(self.model, outputs)
                    for copy, i in enumerate(chunk, start=1):
                        readings[i].record(batch, log_probs[copy], greedy[copy])
                        beside[i].record(batch, log_probs[0], greedy[0])
                    advance(len(chunk) * len(batch.entry))
        return baseline

    def _copies(self, count: int) -> int:
        """Copies in a batch of a target with so many candidates: as few batches as memory allows, evenly filled."""
        most = max(1, self.tokens // self._longest - 1)
        return 1 + -(-count // -(-count // most))

    def _outputs(self, target: Target, chunk: Sequence[Candidate], replay: Replay, copies: int) -> Tensor:
        """What the target gives in every copy: its recorded output, then each candidate's; as padding the former."""
        weight, rows = target.parameter(self.model), slice(*(target.rows or (None,)))
        bias = getattr(self.model.get_submodule(self.plans[target].module), "bias", None)
        outputs = replay.output.repeat(copies, *[1] * replay.output.dim())
        done = 1
        for (_, blocks, dimension), group in itertools.groupby(chunk, key=lambda c: c.factors):
            ratios = [candidate.ratio for candidate in group]
            factors = self.factors.of(target, blocks, dimension)
            outputs[done : done + len(ratios), ..., rows] = linear_blocks(
                replay.input.to(weight.device),
                target.view(weight),
                None if bias is None else bias[rows],
                **({"ratios": ratios} if dimension is None else {"ranks": [dimension] * len(ratios)}),
                factors=factors,
                projected=self.factors.projected(target, blocks, dimension),
                backend=self.factors.backend,
            )
            done += len(ratios)
        return outputs

    def _obstacle(self, batch: Batch, candidate: Candidate, plan: Plan) -> str | None:
        """Why a target's trials cannot replay the model, or None: at all ranks they must give what it gives."""
        if plan.calls != 1:
            return f"its module runs {plan.calls} times in one forward pass"
        with recorded(self.model, batch, [plan]) as recording:
            expected, _ = batch.read(self.model)
        replay, outputs = Replay(batch, recording, plan, 2), None
        if self.supports(candidate) and not candidate.clustered:  # a cluster has not all ranks
            outputs = self._outputs(candidate.target, [dataclasses.replace(candidate, ratio=1.0)], replay, 2)
        try:
            found, _ = replay.read(self.model, outputs)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # outputs whose rows are not first, as in Llama 4
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
        return factors.free + factors.workspace
    unused = [torch.cuda.memory_reserved(d) - torch.cuda.memory_allocated(d) for d in cuda]
    return min(7 * (torch.cuda.mem_get_info(d)[0] + u) // 10 for d, u in zip(cuda, unused, strict=True))
