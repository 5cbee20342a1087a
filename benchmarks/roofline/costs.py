"""What each unit of work costs on an H200: published figures, the host's as measured, and what is assumed between."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from benchmarks.roofline.work import Amount, Kind, Work


@dataclass(frozen=True)
class Cost:
    """A rate per second, or seconds; `high` is the dearer end where only a range is known."""

    value: float
    source: str
    high: float | None = None

    @property
    def ends(self) -> tuple[float, float]:
        return self.value, self.value if self.high is None else self.high


DATASHEET = "NVIDIA H200 SXM datasheet"
COSTS = {
    "bfloat16": Cost(989e12, f"flop/s, dense, {DATASHEET}"),
    "float16": Cost(989e12, f"flop/s, dense, {DATASHEET}"),
    "tf32": Cost(495e12, f"flop/s, dense, {DATASHEET}; the ops compute in FP32, so nothing has this cost by default"),
    "float32": Cost(67e12, f"flop/s, {DATASHEET}"),
    "float64": Cost(67e12, f"flop/s, tensor cores, {DATASHEET}"),
    "bandwidth": Cost(4.8e12, f"bytes/s, {DATASHEET}"),
    "efficiency": Cost(0.7, "of the peak, that products reach; assumed"),
    "bandwidth-efficiency": Cost(0.8, "of the bandwidth, that traffic reaches; assumed"),
    "launch": Cost(8e-6, "seconds that PyTorch takes to call one op; assumed"),
    "eigen-small": Cost(
        5.3e12, "9n³/s of an eigenproblem up to 1024², in batches; JAX issue 31368: n = 512 and, dearer, 256", 1.3e12
    ),
    "eigen-large": Cost(
        2e12,
        "9n³/s of a larger one; at best 3 % of FP64's peak (Wang et al., H100), at worst assumed; FP32 alike",
        0.7e12,
    ),
    "eigen-least": Cost(
        1e-4, "seconds for each of the smallest in a batch; dearer, for any batch; the same issue, n = 256", 1e-3
    ),
    "column": Cost(0.3e-6, "seconds for each column of a Cholesky factor, beside its operations; assumed", 1e-6),
    "sha256": Cost(1.44e10, "bytes/s of eight cores of an AMD EPYC with SHA instructions; of one 1.8e9, measured"),
    "xxh3": Cost(3.2e10, "bytes/s of one such core; measured"),
    "transfer": Cost(12e9, "bytes/s from the GPU to pageable memory; assumed"),
    "exchange": Cost(1e9, "bytes/s between processes, pickled and sent by gloo; assumed"),
    "disk": Cost(2e9, "bytes/s, written durably or read; assumed"),
}
EIGEN = ("eigh", "svd", "qr")
TRIANGULAR = ("cholesky_ex", "cholesky_inverse", "solve_triangular")
HOST = ("sha256", "sha256 ahead", "xxh3", "disk", "stored")
ASIDE = "threads aside"
LARGE = 1024


@dataclass(frozen=True)
class Seconds:
    """Of a phase, from the cheaper to the dearer end, by what takes them."""

    parts: Mapping[str, tuple[float, float]]

    @property
    def total(self) -> tuple[float, float]:
        """Of what counts, see `_counting`."""
        low, high = (sum(self.parts[name][end] for name in self._counting(end)) for end in (0, 1))
        return low, high

    @property
    def counting(self) -> Mapping[str, tuple[float, float]]:
        """The parts that count, at the dearer end."""
        return {name: self.parts[name] for name in self._counting(1)}

    @property
    def bound(self) -> str:
        """What takes most of it."""
        return max(self.counting, key=lambda name: sum(self.parts[name]), default="nothing")

    def _counting(self, end: int) -> list[str]:
        """The host calls one op after the other while the GPU works: of the two the longer counts; the rest adds up.

        What other threads write and sum up meanwhile counts where it takes longer than all of that.
        """

        def taken(names: Iterable[str]) -> float:
            return sum(self.parts[name][end] for name in names)

        gpu, host, aside = ([name for name in self.parts if name in some] for some in (ON_GPU, ("launches",), (ASIDE,)))
        others = [name for name in self.parts if name not in (*gpu, *host, *aside)]
        one_by_one = max(gpu, host, key=taken) + others
        return max(one_by_one, aside, key=taken)


ON_GPU = ("products in bfloat16", "products in float16", "products in float32", "products in float64", "traffic")


def seconds(work: Work, costs: Mapping[str, Cost] = COSTS) -> Seconds:
    """What this work should take."""
    parts: dict[str, tuple[float, float]] = {}
    launches = 0
    for kind, amount in work.items():
        name, taken = _cost(kind, amount, costs)
        before = parts.get(name, (0.0, 0.0))
        parts[name] = before[0] + taken[0], before[1] + taken[1]
        if kind.name not in HOST:
            launches += amount.batches or amount.calls
    parts["launches"] = (launches * costs["launch"].value,) * 2
    return Seconds(parts)


def _cost(kind: Kind, amount: Amount, costs: Mapping[str, Cost]) -> tuple[str, tuple[float, float]]:
    if kind.name in EIGEN:
        in_a_batch, alone = costs["eigen-least"].ends
        rates = costs["eigen-large" if kind.size > LARGE else "eigen-small"].ends
        low, high = (amount.calls * max(in_a_batch, 9 * kind.size**3 / rate) for rate in rates)
        return "eigenproblems", (low, max(high, amount.batches * alone))
    if kind.name in TRIANGULAR:
        columns = amount.calls * kind.size if kind.name == "cholesky_ex" else 0
        taken = amount.flops / (costs[kind.dtype].value * costs["efficiency"].value)
        low, high = (columns * cost + taken for cost in costs["column"].ends)
        return "triangular factors", (low, high)
    if kind.name == "stored":
        taken = amount.bytes / costs["disk"].value
        return ASIDE, (taken, taken)
    if kind.name in HOST:
        name, *ahead = kind.name.split()
        taken = amount.bytes / costs[name].value
        if name != "disk":
            taken += amount.bytes / costs["transfer"].value
        return ASIDE if ahead else {"sha256": "SHA-256", "xxh3": "XXH3"}.get(name, name), (taken, taken)
    moving = amount.bytes / (costs["bandwidth"].value * costs["bandwidth-efficiency"].value)
    if kind.name == "traffic":
        return "traffic", (moving, moving)
    taken = max(moving, amount.flops / (costs[kind.dtype].value * costs["efficiency"].value))
    return f"products in {kind.dtype}", (taken, taken)


def total(phases: Iterable[Seconds]) -> tuple[float, float]:
    """Of several phases, one after the other."""
    ends = [phase.total for phase in phases]
    return sum(low for low, _ in ends), sum(high for _, high in ends)
