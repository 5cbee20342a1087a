"""Options declared once: the fields of a dataclass, from which checks, Python's keywords and commands are derived."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from numbers import Integral, Real
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from lasertri.errors import LasertriError
from lasertri.support.shown import shown

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class Option:
    """What is said of an option beside its name, type and default: `count: Annotated[int, Option("…", least=1)] = 5`.

    Attributes:
        help: what it is for, in a sentence.
        section: of --help.
        flags: on the command line, where they are not made of its name.
        least, most: bounds of a number, or of each where there are several.
        names: the texts that it may be, where they are no `Literal`.
        suggested: texts that a shell completes, among others that it may be.
        unit: how many of Python's units are one of the command line's: 2**30 where bytes are given in GiB.
    """

    help: str
    section: str = "Search"
    flags: tuple[str, ...] = ()
    least: float | None = None
    most: float | None = None
    names: tuple[str, ...] = ()
    suggested: tuple[str, ...] = ()
    unit: int = 1


@dataclass(frozen=True)
class Declared:
    """An option with its name, type and default."""

    name: str
    annotation: Any
    default: Any
    option: Option

    @property
    def several(self) -> bool:
        """Whether it has any number of values."""
        return get_origin(self.annotation) is tuple

    @property
    def optional(self) -> bool:
        """Whether it may be None."""
        return NoneType in get_args(self.annotation)

    @property
    def kind(self) -> Any:
        """Type of its value, or of each where there are several."""
        if get_origin(self.annotation) is Literal:
            return str
        return next((kind for kind in get_args(self.annotation) if kind is not NoneType), self.annotation)

    @property
    def names(self) -> tuple[str, ...]:
        """The texts that it may be; empty where that is no matter of names."""
        return get_args(self.annotation) if get_origin(self.annotation) is Literal else self.option.names

    @property
    def parameter(self) -> inspect.Parameter:
        """It as a keyword of a function."""
        annotation = Literal[self.names] if self.names else self.annotation
        return inspect.Parameter(self.name, inspect.Parameter.KEYWORD_ONLY, default=self.default, annotation=annotation)

    def check(self, value: Any) -> None:
        """Raise where a value is of another type, out of bounds, or no name that it may be."""
        if value is None and self.optional:
            return
        values = value if self.several else (value,)
        if not all(_is(each, self.kind) for each in values):
            raise self._unlike(value, self.kind)
        if self.names and value not in self.names:
            raise LasertriError(f"expected {self.name} among {list(self.names)}, got {shown(value)}")
        least, most = self.option.least, self.option.most
        for each in values:
            if (least is not None and not each >= least) or (most is not None and not each <= most):
                bounds = f"of at least {least}" if most is None else f"from {least} to {most}"
                raise LasertriError(f"expected {self.name} {bounds}, got {shown(each)}")
            if isinstance(each, float) and not math.isfinite(each):  # which JSON has no word for
                raise LasertriError(f"expected a finite {self.name}, got {each}")

    def read(self, text: str) -> Any:
        """A number, or values separated by commas (and in the brackets of a list, if need be), from a command line."""
        parts = [part.strip(' "') for part in text.strip("[] ").split(",")] if self.several else [text]
        kind = self.kind if self.option.unit == 1 else float
        try:
            values = tuple(kind(part) for part in parts if part or not self.several)
            value: Any = values if self.several else values[0]
            if self.option.unit != 1:
                value = round(value * self.option.unit)
        except (ValueError, OverflowError) as error:
            raise self._unlike(text, kind) from error
        self.check(value)
        return value

    def written(self, value: Any) -> str:
        """The text that is read as this value."""
        if self.several:
            return ",".join(map(str, value))
        return f"{value / self.option.unit:g}" if self.option.unit != 1 else str(value)

    def _unlike(self, value: Any, kind: type) -> LasertriError:
        texts = {int: "a whole number", float: "a number", bool: "True or False", str: "text"}
        text = texts.get(kind, kind.__name__)
        expected = f"{self.name} separated by commas, each as {text}" if self.several else f"{self.name} as {text}"
        return LasertriError(f"expected {expected}, got {shown(value)}")


def _is(value: Any, kind: type) -> bool:
    if kind in (int, float):
        return isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
    return isinstance(value, kind)


def declared(cls: type) -> dict[str, Declared]:
    """The options of a dataclass by name, in their order."""
    found, hints = {}, get_type_hints(cls, include_extras=True)
    for field in dataclasses.fields(cls):
        annotation, *notes = get_args(hints[field.name])
        [option] = (note for note in notes if isinstance(note, Option))
        found[field.name] = Declared(field.name, annotation, field.default, option)
    return found


def check(options: Any) -> None:
    """Raise a `LasertriError` where an option of this dataclass has a value that it cannot have."""
    for name, each in declared(type(options)).items():
        each.check(getattr(options, name))


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the known one that is most like it, if any is."""
    return "".join(f"; did you mean {found!r}?" for found in difflib.get_close_matches(name, known, n=1))


def with_options_of(cls: type) -> Callable[[Function], Function]:
    """Let a function's `**keywords` be the options of a dataclass: its signature and docstring list them.

    Called with a keyword that it does not have, the function raises a `LasertriError` with the nearest one.
    """
    return functools.partial(_with_options, options=declared(cls))


def _with_options(function: Function, options: dict[str, Declared]) -> Function:
    signature, name = inspect.signature(function), function.__name__
    own = [parameter for parameter in signature.parameters.values() if parameter.kind is not parameter.VAR_KEYWORD]
    full = signature.replace(parameters=[*own, *(each.parameter for each in options.values())])

    @functools.wraps(function)
    def checked(*arguments: Any, **keywords: Any) -> Any:
        for unknown in keywords.keys() - full.parameters.keys():
            advice = nearest(unknown, full.parameters) or f"; help({name}) lists them"
            raise LasertriError(f"expected an option of {name}, got {shown(unknown)}{advice}")
        return function(*arguments, **keywords)

    checked.__signature__ = full  # type: ignore[attr-defined]
    lines = (f"    {name}: {each.option.help}" for name, each in options.items())
    checked.__doc__ = "\n".join([inspect.getdoc(function) or "", "", "Options:", *lines])
    return checked  # type: ignore[return-value]
