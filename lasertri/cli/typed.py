"""The command line as it was typed, to be told of a result: files by their names, without their folders."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

from typer.core import TyperCommand

_words: ContextVar[tuple[str, ...]] = ContextVar("_words", default=())


def command_line() -> str:
    """The command that runs, for a shell; empty outside of one."""
    return shlex.join(_words.get())


class Command(TyperCommand):
    """A command that notes what it was given."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the words, and keep what they say."""
        given, *_ = self.make_parser(ctx).parse_args(args=list(args))
        rest = super().parse_args(ctx, args)
        _words.set(("lasertri", str(ctx.info_name), *_said(self.get_params(ctx), given)))
        return rest


def _said(parameters: list[Any], given: dict[str, Any]) -> Iterator[str]:
    """Arguments and options, with their values as they were typed."""
    for each in parameters:
        value = given.get(each.name)
        if isinstance(value, bool):
            yield (each.opts if value else each.secondary_opts or each.opts)[0]
        elif isinstance(value, str):
            if each.param_type_name != "argument":
                yield each.opts[-1]
            yield _without_folders(value)


def _without_folders(value: str) -> str:
    """The name alone of a path to what is there, or from the root or from here."""
    is_path = value.startswith((os.sep, "./", "../", "~")) or os.path.lexists(value)
    return os.path.basename(os.path.abspath(value)) if is_path else value
