"""Run a plan: column by column, each kept as it finishes, the table written again after it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lasertri.errors import LasertriError
from lasertri.factors.cache import FactorCache
from lasertri.reproduce.column import TaskData, measure_column
from lasertri.reproduce.folder import Folder
from lasertri.reproduce.markdown import as_markdown, rows_as_markdown
from lasertri.reproduce.plan import Plan
from lasertri.reproduce.published import MODELS, models_of
from lasertri.reproduce.table import tabulate
from lasertri.support.environment import devices, environment
from lasertri.support.memory import memory_told

Done = TypeVar("Done")


def reproduce(
    plan: Plan,
    folder: Folder,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    tell: Callable[[str], object] = print,
) -> dict[str, Any]:
    """Run what the folder lacks, and return the table, which `as_markdown` prints.

    A column that fails (no data, out of memory) is kept as failed and tried again by the next run; the others go on.

    Args:
        model: the plan's.
        tell: is given lines for the user as the work goes on.

    Raises:
        LasertriError: the folder has columns that were run under other rules, or cannot be written.
    """
    origin = {
        "commit": getattr(model.config, "_commit_hash", None),
        "dtype": str(model.dtype).removeprefix("torch."),
    }
    common = {
        "rules": plan.rules | origin,
        "conditions": _conditions(plan, model),
        "environment": environment(),
    }
    folder.check(common["rules"])
    published = published_model(plan, model)
    for task in plan.tasks:
        pending = [column for column in plan.columns if not folder.finished(task, column)]
        reused = [column for column in plan.columns if column not in pending]
        if reused:
            tell(f"{task}: finished before, taken from {folder.path}: {', '.join(reused)}")
        for column, outcome in _outcomes(plan, task, pending, model, tokenizer, tell):
            folder.write(task, column, common | outcome)
            _write_table(plan, folder, published)
        table = _write_table(plan, folder, published)
        if task != plan.tasks[-1]:  # the whole table follows the last
            tell("\n" + rows_as_markdown([row for row in table["rows"] if row["task"] == task], published) + "\n")
    return table


def _outcomes(
    plan: Plan,
    task: str,
    columns: Sequence[str],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tell: Callable[[str], object],
) -> Iterator[tuple[str, dict[str, Any]]]:
    """What was measured of every column, or why it was not."""
    data: TaskData | _Failure | None = None
    for column in columns:
        if data is None:
            data = _attempt(functools.partial(TaskData.load, task, plan, model, tokenizer))
            tell(f"{task}: {data.message}" if isinstance(data, _Failure) else data.description)
        if isinstance(data, _Failure):
            yield column, {"error": data.message}
            continue
        tell(f"{task}, {column}")
        found = _attempt(functools.partial(measure_column, column, plan, data, model, tokenizer))
        if isinstance(found, _Failure):
            tell(f"{task}, {column}: {found.message}")
        yield column, {"error": found.message} if isinstance(found, _Failure) else found


def _write_table(plan: Plan, folder: Folder, published: str | None) -> dict[str, Any]:
    table = tabulate(plan.table, published, folder.records)
    folder.write_table(table, as_markdown(table))
    return table


@dataclass(frozen=True)
class _Failure:
    message: str


def _attempt(work: Callable[[], Done]) -> Done | _Failure:
    """What it returns, or why it failed, where that is no fault of the program."""
    try:
        with memory_told():
            return work()
    except LasertriError as error:
        return _Failure(str(error))


def published_model(plan: Plan, model: PreTrainedModel) -> str | None:
    """Whose published figures stand beside: those asked for, or the model's if it is one of the paper's."""
    if plan.published is not None:
        return None if plan.published == "none" else plan.published
    name = model.config.model_type
    own = name in models_of(plan.table) and MODELS[name].layers == model.config.num_hidden_layers
    return name if own else None


def _conditions(plan: Plan, model: PreTrainedModel) -> dict[str, Any]:
    """What seconds depend on, beside the rules."""
    return {
        "device": next(name for name in devices() if name.split()[0] == str(model.device)),
        "threads": torch.get_num_threads(),
        "batch_size": plan.batch_size,
        "memory_budget": plan.memory_budget,
        "factor_cache": FactorCache.default() is not None,
    }
