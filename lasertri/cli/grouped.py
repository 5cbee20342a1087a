"""Options of a command that are declared elsewhere: a parameter that is a dataclass is an option for every field."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, is_dataclass
from typing import Annotated, Any, Literal, get_args

import typer

from lasertri.errors import LasertriError
from lasertri.support.options import Declared, declared


class Only:
    """Which fields a command takes: `settings: Annotated[Settings, Only("chat", "batch_size")]`."""

    def __init__(self, *names: str) -> None:
        self.names = names


@contextmanager
def usage() -> Iterator[None]:
    """An option that cannot be used is an error of usage, exit code 2."""
    try:
        yield
    except LasertriError as error:
        raise typer.BadParameter(str(error)) from error


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """A command with the fields of its dataclasses as options; values they cannot have are errors of usage."""
    parameters: list[inspect.Parameter] = []
    groups: dict[str, tuple[type, Sequence[str]]] = {}
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        cls, *notes = get_args(parameter.annotation) or (parameter.annotation,)
        if not isinstance(cls, type) or not is_dataclass(cls):
            parameters.append(parameter.replace(kind=parameter.KEYWORD_ONLY))
            continue
        options = declared(cls)
        names = next((note.names for note in notes if isinstance(note, Only)), tuple(options))
        groups[parameter.name] = cls, names
        parameters += [_option(options[name]) for name in names]

    @functools.wraps(command)
    def wrapper(**given: Any) -> None:
        with usage():
            made = {group: cls(**{name: given.pop(name) for name in names}) for group, (cls, names) in groups.items()}
        command(**given, **made)

    wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return wrapper


def _option(each: Declared) -> inspect.Parameter:
    """A field as Typer takes an option: names and paths are its own, numbers are read and checked as declared."""
    option, annotation = each.option, each.annotation
    default: Any = inspect.Parameter.empty if each.default is MISSING else each.default
    about: dict[str, Any] = {"help": option.help, "rich_help_panel": option.section}
    if each.several or each.kind in (int, float):
        annotation = str
        about |= {"parser": _reader(each), "metavar": _metavar(each)}
        if default not in (None, inspect.Parameter.empty):
            default = each.written(default)
    elif each.names:
        annotation = Literal[each.names]
        if len(each.names) > 5:
            about["metavar"] = "NAME"
    if option.suggested:
        about["autocompletion"] = _completed(option.suggested)
    return inspect.Parameter(
        each.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[annotation, typer.Option(*option.flags, **about)],
    )


def _reader(each: Declared) -> Callable[[str], Any]:
    """What reads its text, with the sentence of its own where it cannot."""

    def value(text: str) -> Any:
        with usage():
            return each.read(text)

    return value


def _metavar(each: Declared) -> str:
    if each.several:
        return "NAMES" if each.kind is str else "NUMBERS"
    least, most = each.option.least, each.option.most
    if least is None or each.option.unit != 1:
        return "NUMBER"
    return f"NUMBER >= {least}" if most is None else f"{least} <= NUMBER <= {most}"


def _completed(names: Iterable[str]) -> Callable[[str], list[str]]:
    """What a shell offers for the beginning of a name, the last of those separated by commas."""

    def matching(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        return [before + comma + name for name in names if name.startswith(last)]

    return matching
