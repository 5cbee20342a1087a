"""The counts as a record, and what they should take as text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

from benchmarks.record import machine_record, write_record
from benchmarks.roofline import scaling
from benchmarks.roofline.costs import COSTS, HOST, Cost, Seconds, seconds, total
from benchmarks.roofline.count import EDITS, Phases, count
from benchmarks.roofline.work import Amount, Kind, Work
from lasertri.errors import LasertriError

GIB = 1 << 30
BUDGETS = (4, 60)  # GiB: the default of a CPU, and what an H200 has by default beside GPT-J in BF16
GOALS = {("step", 1): 5.0, ("truncate", 1): 15.0, ("truncate", 2): 10.0}
LEAST = 256  # size of an eigenproblem that is told of
COLUMNS = ["work", "dtype", "size", "calls", "flops", "bytes", "batches"]
BEFORE, HELD_OUT, SIZE = "before", "held-out", "one size"


@dataclass(frozen=True)
class Counted:
    """What one task's adaptation was counted to do.

    Attributes:
        task: 1 for the first on a model, 2 for the next, which finds the factors on disk.
        budget: GiB.
    """

    edit: str
    budget: int
    task: int
    phases: Phases

    def seconds(self, costs: Mapping[str, Cost], sizes: int) -> dict[str, Seconds]:
        """By phase, with so many sizes in the place of one."""
        found = {name: seconds(work, costs) for name, work in self.phases.items()}
        if SIZE in found:
            parts = found[SIZE].parts.items()
            found[SIZE] = Seconds({name: (sizes * low, sizes * high) for name, (low, high) in parts})
        return found

    def label(self, phase: str, sizes: int) -> str:
        """A phase's name for readers: trials of steps are their making, and then sizes."""
        if phase == SIZE:
            return f"trials: {sizes} sizes"
        return "trials: making the edits" if phase == "trials" and SIZE in self.phases else phase


def write_counts(
    path: Path, *, edits: Sequence[str] = EDITS, budgets: Sequence[int] = BUDGETS, layers: int = 28
) -> None:
    """Count, and write the record: a list for every kind of work of every phase."""
    machine, runs = machine_record(), []
    for edit in edits:
        for budget in budgets:
            print(f"counting {edit} with {budget} GiB …", flush=True)
            tasks = count(edit, budget * GIB, layers=layers, tasks=2 if edit == "truncate" else 1)
            runs += [
                {
                    "edit": edit,
                    "budget_gib": budget,
                    "task": number,
                    "phases": {
                        phase: [[*astuple(k), *astuple(a)] for k, a in sorted(work.items())]
                        for phase, work in phases.items()
                    },
                }
                for number, phases in enumerate(tasks, start=1)
            ]
    write_record("roofline", {"columns": COLUMNS, "runs": runs}, path, machine)


def read_counts(path: Path) -> list[Counted]:
    record = json.loads(path.read_text(encoding="utf-8"))
    if record["columns"] != COLUMNS:
        raise LasertriError(f"expected counts of {COLUMNS}, got {record['columns']}; count anew (--count)")
    return [
        Counted(
            run["edit"],
            run["budget_gib"],
            run["task"],
            {
                phase: {Kind(name, dtype, size): Amount(*amount) for name, dtype, size, *amount in rows}
                for phase, rows in run["phases"].items()
            },
        )
        for run in record["runs"]
    ]


def text(counts: Sequence[Counted], costs: Mapping[str, Cost] = COSTS, sizes: int = 5) -> str:
    """All tables, in Markdown."""
    return "\n".join(_lines(counts, costs, sizes))


def _lines(counts: Sequence[Counted], costs: Mapping[str, Cost], sizes: int) -> Iterator[str]:
    yield "This is a model, not a measurement: work counted, times what its units cost by the table below.\n"
    yield from table(["unit", "cost", "of what, and from where"], _costs(costs))
    for counted in counts:
        yield f"\n{counted.edit}, task {counted.task}, memory budget {counted.budget} GiB\n"
        found = counted.seconds(costs, sizes)
        rows = [
            [counted.label(name, sizes), between(s.total), _bound(s), _work(counted.phases[name])]
            for name, s in found.items()
        ]
        rows.append(["in all", between(total(found.values())), "", ""])
        yield from table(["phase", "seconds", "what bounds it", "work (of one size)"], rows)
    yield "\nGoals\n"
    yield from table(["", "goal, s", "search, s", "in all, s", "most of the search"], _goals(counts, costs, sizes))
    yield "\nA step of other models\n"
    step = next((c for c in counts if c.edit == "step" and c.budget == max(BUDGETS)), None)
    if step is not None:
        yield from table(*scaling.steps(step.seconds(costs, sizes), costs))


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Lines of a table in Markdown."""
    for row in (head, ["---"] * len(head), *rows):
        yield f"| {' | '.join(row)} |"


def between(ends: tuple[float, float]) -> str:
    """A range in as many digits as it deserves."""
    low, high = (f"{end:.1f}" if end < 10 else f"{end:.0f}" for end in ends)
    return low if low == high else f"{low} to {high}"


def _costs(costs: Mapping[str, Cost]) -> Iterator[list[str]]:
    for name, cost in costs.items():
        ends = dict.fromkeys(f"{end:.3g}" for end in cost.ends)
        yield [name, " to ".join(ends), cost.source]


def _bound(taken: Seconds) -> str:
    name = taken.bound
    return f"{name} ({between(taken.parts[name])} s)"


def _work(work: Work) -> str:
    """Products, bytes and eigenproblems, in short."""
    flops, moved = sum(a.flops for a in work.values()), sum(a.bytes for k, a in work.items() if k.name not in HOST)
    solved: dict[int, int] = {}
    for kind, amount in sorted(work.items()):
        if kind.name == "eigh" and kind.size >= LEAST:
            size = 1 << (kind.size - 1).bit_length()
            solved[size] = solved.get(size, 0) + amount.calls
    eigen = [f"{calls} × up to {size}²" for size, calls in solved.items()]
    return ", ".join([f"{flops / 1e12:.3g} Tflop", f"{moved / 1e9:.3g} GB", *eigen])


def _goals(counts: Sequence[Counted], costs: Mapping[str, Cost], sizes: int) -> Iterator[list[str]]:
    for counted in counts:
        goal = GOALS.get((counted.edit, counted.task))
        if goal is not None:
            found = counted.seconds(costs, sizes)
            search = [phase for name, phase in found.items() if name not in (BEFORE, HELD_OUT)]
            taken: dict[str, list[tuple[float, float]]] = {}
            for name, ends in (part for phase in search for part in phase.counting.items()):
                taken.setdefault(name, []).append(ends)
            most = sorted(taken, key=lambda name: -sum(map(sum, taken[name])))[:2]
            parts = (
                f"{name} {between((sum(a for a, _ in taken[name]), sum(b for _, b in taken[name])))}" for name in most
            )
            name = f"{counted.edit}, task {counted.task}, {counted.budget} GiB"
            yield [name, f"{goal:g}", between(total(search)), between(total(found.values())), ", ".join(parts)]
