"""What the parts of a run share: the device, the clock, the deadline, and the rows measured so far."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

ENOUGH_SECONDS = 0.3  # of rounds, for one figure
SLOW_SECONDS = 0.5  # beyond which one round after the warm-up must do
LONG_SECONDS = 5.0  # beyond which the second call is the figure
FLUSH_BYTES = 256 * 2**20  # more than any L2 cache


@dataclass
class Session:
    """A run on a GPU, or its rehearsal on the CPU, which checks every result and times none.

    Attributes:
        log: JSON lines that hold all there is so far, whenever the run is cut off.
    """

    device: torch.device
    deadline: float = float("inf")
    log: Path | None = None
    steps: dict[str, str] = field(default_factory=dict)
    begun: float = field(default_factory=time.monotonic)
    rows: list[dict[str, Any]] = field(default_factory=list)
    ceilings: dict[str, float] = field(default_factory=dict)
    unmeasured: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    @property
    def rehearsal(self) -> bool:
        return self.device.type != "cuda"

    @property
    def late(self) -> bool:
        return time.monotonic() > self.deadline

    def add(self, part: str, case: str, route: str, seconds: float | None, **more: Any) -> None:
        """Keep one figure; without seconds it was checked only."""
        row = {"part": part, "case": case, "route": route, "seconds": seconds, **more}
        self.rows.append(row)
        self._write(row)

    def did(self, step: str, outcome: str) -> None:
        """Keep what became of a step."""
        self.steps[step] = outcome
        self._write({"step": step, "outcome": outcome})

    def skip(self, what: str, why: str) -> None:
        self.unmeasured.append(f"{what}: {why}")
        self._write({"unmeasured": what, "why": why})
        print(f"not measured: {what}: {why}", flush=True)

    def time(self, run: Callable[[], object]) -> float | None:
        """Median seconds of a call once warmed up, with a cold L2 cache; a rehearsal runs it once and gives None."""
        if self.rehearsal:
            run()
            return None
        first = self._wall_seconds(run)  # compiles and initialises what is used for the first time
        again = self._wall_seconds(run)
        if first > LONG_SECONDS:
            return again
        flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=self.device)
        rounds = 1 if again > SLOW_SECONDS else max(3, min(100, int(ENOUGH_SECONDS / max(again, 1e-4))))
        seconds = []
        for _ in range(rounds):
            flush.zero_()
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            run()
            end.record()
            end.synchronize()
            seconds.append(begin.elapsed_time(end) / 1000)
        return statistics.median(seconds)

    @staticmethod
    def _wall_seconds(run: Callable[[], object]) -> float:
        torch.cuda.synchronize()
        start = time.monotonic()
        run()
        torch.cuda.synchronize()
        return time.monotonic() - start

    def _write(self, entry: dict[str, Any]) -> None:
        if self.log is not None:
            with self.log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry, ensure_ascii=False) + "\n")

    def attempt(self, what: str, run: Callable[[], None]) -> None:
        """Run one case unless it is late; one that fails must not cost the figures of the others."""
        if self.late:
            self.skip(what, "out of time")
            return
        try:
            run()
            print(f"right, at {time.monotonic() - self.begun:.0f} s: {what}", flush=True)
        except Exception as error:  # a wrong result, out of memory, a compiler's failure: all are findings
            self.faults.append(f"{what}: {type(error).__name__}: {error}")
            self.skip(what, f"{type(error).__name__}: {error}")
        if not self.rehearsal:
            torch.cuda.empty_cache()

    def ceiling(self, flops: float, moved_bytes: float, arithmetic: str) -> float | None:
        """Least seconds for so many operations and bytes at the rates measured on this device."""
        if self.rehearsal or not {"copy", arithmetic} <= self.ceilings.keys():
            return None
        return max(flops / self.ceilings[arithmetic], moved_bytes / self.ceilings["copy"])
