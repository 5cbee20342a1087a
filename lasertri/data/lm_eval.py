"""Samples from a task of lm-evaluation-harness: its own prompts, choices and labels, divided as it divides tokens.

Accuracy on them is the task's `acc`, and with `normalize` its `acc_norm`. `LASER_TASKS` is a folder with the tasks of
LASER's paper for lm_eval's `--include_path`; they are known here without it.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from lasertri.data.chat import chat_text
from lasertri.data.sample import Sample
from lasertri.errors import LasertriError
from lasertri.support.shown import shown

LASER_TASKS = Path(__file__).parent / "lm_eval_yaml"
FEWSHOT_SEED = 1234  # lm_eval's own default


def lm_eval_samples(
    task: str | dict[str, Any],
    *,
    include_path: str | Path | None = None,
    group: str = "group",
    num_fewshot: int | None = None,
    limit: int | None = None,
    chat: PreTrainedTokenizerBase | None = None,
) -> list[Sample]:
    """The docs that lm_eval would measure a task on (its test split, or else its validation split) as samples.

    `adapt` divides them, so that its held-out figures are on docs that took no part in the choice. lm_eval measures all
    docs: its figure for an adapted model contains the docs that calibrated it.

    A multiple-choice task gives samples with choices; a `loglikelihood` or `generate_until` task gives completions,
    which are measured as greedy matches of their tokens, whatever the task's own metric.

    Args:
        task: the name of a task, a YAML file, or a task's configuration.
        include_path: folder with other tasks. A task's YAML may name Python functions, which then run: only give a
            folder that you would run code from.
        group: field of a doc that keeps related docs on one side of a split; by default docs of one question are kept
            together.
        num_fewshot: examples before each question; by default as the task has it.
        limit: read only so many docs, the first ones.
        chat: a tokenizer, to write the prompts in its chat template as lm_eval's `--apply_chat_template` does.

    Raises:
        LasertriError: lm_eval is not installed, the task is not there, it is of a kind that has no right answer to
            follow its prompt, or a doc cannot be used.
    """
    found = _load(task, include_path)
    name = found.task_name
    if num_fewshot is not None:
        found.set_config("num_fewshot", num_fewshot)
    obstacle = _obstacle(found)
    if obstacle:
        raise LasertriError(f"lm_eval task {name}: {obstacle}; choose another task, or bring its rows as a file")
    if group != "group" and group not in found.features:
        raise LasertriError(f"lm_eval task {name}: expected docs with a field {shown(group)}, got {found.features}")
    found.set_fewshot_seed(FEWSHOT_SEED)
    found.build_all_requests(
        limit=limit,
        apply_chat_template=chat is not None,
        fewshot_as_multiturn=chat is not None,  # as lm_eval does by itself
        chat_template=None if chat is None else functools.partial(chat_text, chat),
    )
    docs = itertools.groupby(found.instances, key=lambda instance: instance.doc_id)
    return [_sample(found, list(requests), group, chat is not None) for _, requests in docs]


def _load(task: str | dict[str, Any], include_path: str | Path | None) -> Any:
    """One task, with its data."""
    try:
        from datasets.exceptions import DatasetsError
        from lm_eval.api.task import ConfigurableTask
        from lm_eval.tasks import TaskManager
    except ModuleNotFoundError as error:
        raise LasertriError(
            f"expected lm-evaluation-harness for an lm_eval task, it is not installed ({error}); "
            "pip install 'lasertri[lm-eval]'"
        ) from error
    if include_path is not None and not Path(include_path).is_dir():
        raise LasertriError(f"expected a folder of lm_eval tasks, found none at {shown(str(include_path))}")
    folders = [LASER_TASKS] if include_path is None else [LASER_TASKS, include_path]
    name = task["task"] if isinstance(task, dict) else task
    for defaults in (False, True):  # lm_eval's own tasks take long to index: they come last
        manager = TaskManager(include_path=folders, include_defaults=defaults)
        if isinstance(task, dict) or name in manager.task_index or Path(name).is_file():
            break
    else:
        raise LasertriError(f"expected the name of an lm_eval task, got {shown(name)}; `lm_eval ls tasks` lists them")
    if name in (*manager.all_groups, *manager.all_tags):
        raise LasertriError(
            f"expected a single lm_eval task, got {shown(name)}, which names several; choose one of them"
        )
    try:
        [found] = manager.load([task])["tasks"].values()
    except (OSError, ValueError, DatasetsError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise LasertriError(f"lm_eval task {name}: expected its data, which cannot be loaded: {reason}") from error
    if not isinstance(found, ConfigurableTask):
        raise LasertriError(f"lm_eval task {name}: expected one described by a YAML file, got {type(found).__name__}")
    return found


def _obstacle(task: Any) -> str | None:
    """Why a task has no right answer that should follow its prompt, or none that could be held out."""
    config, shots = task.config, task.fewshot_cfg
    if task.OUTPUT_TYPE == "loglikelihood_rolling":
        return "expected prompts with an answer, got whole texts (loglikelihood_rolling)"
    if getattr(task, "MULTIMODAL", False):
        return "expected text alone, got images or audio"
    if task.multiple_input:
        return "expected choices that follow one prompt, got one prompt for each choice (multiple_input)"
    if config.process_results is not None:
        return "expected a right answer to each doc, got a function that judges answers (process_results)"
    measured = config.test_split or config.validation_split
    drawn = shots.split or config.training_split or config.validation_split or config.test_split
    if config.num_fewshot and drawn == measured and (shots.split or not shots.samples):
        return f"expected few-shot examples from another split than {measured!r}, whose docs are held out"
    return None


def _sample(task: Any, requests: Sequence[Any], group: str, chat: bool) -> Sample:
    """One doc with its requests, of which the first holds its prompt."""
    doc, (prompt, continuation, *_) = requests[0].doc, requests[0].args
    source = f"lm_eval task {task.task_name}, doc {requests[0].doc_id}"
    related = str(doc[group] if group in doc else task.doc_to_text(doc))
    common: dict[str, Any] = {"group": related, "as_lm_eval": True, "source": source}
    if task.OUTPUT_TYPE == "loglikelihood":
        return Sample(prompt, continuation, delimiter="", **common)
    target = _single(task.doc_to_target(doc), source)
    choices = tuple(task.doc_to_choice(doc)) if task.config.doc_to_choice is not None else ()
    if task.OUTPUT_TYPE == "multiple_choice":
        label = choices.index(target) if target in choices else target
        delimiter = continuation.removesuffix(choices[0])
        return Sample(prompt, choices=choices, label=label, delimiter=delimiter, **common)
    completion = str(choices[target] if choices else target)
    return Sample(prompt, completion, delimiter=_generation_delimiter(task, doc, chat), **common)


def _single(target: Any, source: str) -> Any:
    """The one right answer: a text, or the index of a choice."""
    if isinstance(target, list):
        if len(target) != 1:
            raise LasertriError(f"{source}: expected one right answer, got {len(target)}: {target}")
        [target] = target
    return int(target) if isinstance(target, bool) else target


def _generation_delimiter(task: Any, doc: Any, chat: bool) -> str:
    """What stands before the target of a few-shot example, and so before an answer that is generated."""
    prefix = task.doc_to_prefix(doc)
    if prefix:
        return "" if prefix[-1].isspace() else " "
    return "" if chat else str(task.config.target_delimiter)
