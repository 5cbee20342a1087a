"""What is run: a table's columns, on which tasks, with which model, under which rules."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from lasertri.data.papers.registry import PROTOCOLS, TASKS
from lasertri.errors import LasertriError
from lasertri.reproduce.published import MODELS, TABLES, columns_of, models_of
from lasertri.search.settings import Settings
from lasertri.search.strategies import LASER_RATIOS, STRATEGIES
from lasertri.support.options import Option, declared
from lasertri.support.shown import shown

BASELINE = "baseline"
AS_IN_SETTINGS = {name: each.option for name, each in declared(Settings).items()}


@dataclass(frozen=True)
class Plan:
    """What is run.

    Where it differs from `Settings`: the papers measure everything (`race`), and sum clamped gradients (`score`).

    Raises:
        LasertriError: an option that the table does not have.
    """

    table: Annotated[int, Option("Of Compress to Impress, arXiv 2510.20800.", "Table", least=1, most=TABLES[-1])]
    model: Annotated[
        str, Option("A hub id or folder; by default GPT-J (1, 3, 4) or RoBERTa (2, 5; 4 has both).", "Model")
    ] = ""
    revision: Annotated[
        str | None, Option("Branch, tag or commit on the hub; by default the paper's for its models.", "Model")
    ] = None
    tasks: Annotated[
        tuple[str, ...],
        Option("Names that lasertri ls lists, such as fever,bios-gender; or all.", "Table", suggested=(*TASKS,)),
    ] = ()
    columns: Annotated[tuple[str, ...], Option("Of the table, such as baseline,laser; or all.", "Table")] = ()
    published: Annotated[
        str | None,
        Option(
            "Whose published figures to show; by default the model's, if it is the paper's.",
            "Table",
            names=(*MODELS, "none"),
        ),
    ] = None
    data_dir: Annotated[
        Path | None,
        Option(
            "Folder with a folder of files for each task, by its name, or with one task's files; or the hub.", "Samples"
        ),
    ] = None
    protocol: Annotated[
        str,
        Option(
            "Of the tasks; laser: with the bugs of LASER's code, as the published figures have them.",
            "Samples",
            names=PROTOCOLS,
        ),
    ] = "corrected"
    samples: Annotated[
        int | None, Option("Try out on the first samples of every task alone.", "Samples", least=100)
    ] = None
    held_out_limit: Annotated[int | None, Option("Most samples of the test part; or all.", "Samples", least=1)] = None
    race: Annotated[bool, AS_IN_SETTINGS["race"]] = False
    score: Annotated[Literal["taylor", "paper"], AS_IN_SETTINGS["score"]] = "paper"
    seed: Annotated[int, AS_IN_SETTINGS["seed"]] = Settings.seed
    batch_size: Annotated[int, AS_IN_SETTINGS["batch_size"]] = Settings.batch_size
    memory_budget: Annotated[int | None, AS_IN_SETTINGS["memory_budget"]] = Settings.memory_budget

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
            raise LasertriError(f"expected {what} among {list(known)}, got {shown(value)}")
