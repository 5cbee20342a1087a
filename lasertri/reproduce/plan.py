"""What is run: a table's columns, on which tasks, with which model, under which rules."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lasertri.data.papers.registry import PROTOCOLS, TASKS
from lasertri.errors import LasertriError
from lasertri.reproduce.published import MODELS, TABLES, columns_of, models_of
from lasertri.search.settings import Settings
from lasertri.search.strategies import LASER_RATIOS, STRATEGIES

BASELINE = "baseline"


@dataclass(frozen=True)
class Plan:
    """What is run.

    Args:
        table: 1 to 5.
        model: a hub id or folder; by default the table's own.
        revision: on the hub; by default the paper's for the paper's models.
        tasks: names of `TASKS`; by default all.
        columns: of the table; by default all.
        published: whose published figures to show, "gptj", "roberta" or "none"; by default those of the model that is
            run, if it is one of the paper's two.
        data_dir: folder with a folder for each task, by its name, or with the files of one task; by default the hub.
        protocol: of the tasks, see `task_samples`.
        samples: use the first rows of every task alone.
        held_out_limit: most rows of the test part; by default all.
        race, score: as in `Settings`. The papers measure everything, and sum clamped gradients.
        seed, batch_size, memory_budget: as in `Settings`.

    Raises:
        LasertriError: an option that the table does not have.
    """

    table: int
    model: str = ""
    revision: str | None = None
    tasks: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    published: str | None = None
    data_dir: Path | None = None
    protocol: str = "corrected"
    samples: int | None = None
    held_out_limit: int | None = None
    race: bool = False
    score: str = "paper"
    seed: int = 0
    batch_size: int = 16
    memory_budget: int = 4 << 30

    def __post_init__(self) -> None:
        _expect("a table", (self.table,), TABLES)
        names = models_of(self.table)
        own = MODELS[names[0]]
        model = self.model or own.repository
        revisions = {known.repository: known.revision for known in MODELS.values()}
        filled = {
            "model": model,
            "revision": self.revision or revisions.get(model),
            "tasks": self.tasks or tuple(TASKS),
            "columns": self.columns or tuple(columns_of(self.table)),
        }
        for name, value in filled.items():
            object.__setattr__(self, name, value)
        _expect("tasks", self.tasks, tuple(TASKS))
        _expect(f"columns of table {self.table}", self.columns, columns_of(self.table))
        _expect("a protocol", (self.protocol,), PROTOCOLS)
        if self.published is not None:
            _expect(f"published figures of table {self.table}", (self.published,), (*names, "none"))
        for column in self.columns:
            if column != BASELINE:
                self.settings(column)

    def settings(self, column: str) -> Settings:
        """The papers' rules: LASER's nine ratios, the best candidate taken; one block is ranked as one block."""
        return Settings(
            strategy=column,
            ratios=LASER_RATIOS,
            scoring_blocks=Settings.scoring_blocks if STRATEGIES[column].several_blocks else 1,
            accept="best",
            race=self.race,
            score=self.score,
            seed=self.seed,
            batch_size=self.batch_size,
            memory_budget=self.memory_budget,
        )

    def task_folder(self, task: str) -> Path | None:
        """Where a task's files are: in a folder of its name, or flat."""
        if self.data_dir is None:
            return None
        own = self.data_dir / task
        return own if own.is_dir() else self.data_dir

    @property
    def rules(self) -> dict[str, Any]:
        """What finished columns must share to stand in one table; device, batch size and memory may differ."""
        names = ("model", "revision", "protocol", "samples", "held_out_limit", "race", "score", "seed")
        return {name: getattr(self, name) for name in names}


def _expect(what: str, got: tuple[Any, ...], known: tuple[Any, ...] | list[Any]) -> None:
    for value in got:
        if value not in known:
            raise LasertriError(f"expected {what} among {list(known)}, got {value!r}")
