"""Options of the method and of samples, from Python, from a command line and from a file; most are none."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

from typer.testing import CliRunner

from fuzz.outcome import Refused, attempt, readable
from fuzz.texts import JUNK, text
from lasertri import Fields, adapt
from lasertri.cli import app
from lasertri.cli.loading import Loading
from lasertri.search.settings import Settings
from lasertri.support.options import declared

OPTIONS = {cls: declared(cls) for cls in (Settings, Fields, Loading)}
COMMANDS = ("adapt", "eval", "compress", "apply", "reproduce")


def case(random: Random, folder: Path) -> str:
    """In one of the three ways."""
    return random.choice((from_python, from_python, as_text, as_text, from_command_line))(random, folder)


def value(random: Random, name: str, cls: type) -> Any:
    """One that the option may have, or any other."""
    option = OPTIONS[cls][name]
    kind = random.randrange(4)
    if kind == 0:
        return random.choice(JUNK)
    if kind == 1 and option.names:
        return random.choice(option.names)
    if kind == 2:
        return random.choice((text(random, 2), (1, 2), (0.5, "x"), [1, 8], "auto", "(", "{q}", "{q!r}", 10**400))
    return option.default


def from_python(random: Random, folder: Path) -> str:
    """As keywords; those accepted are kept as they were given."""
    cls = random.choice((Settings, Settings, Fields))
    names = random.sample(sorted(OPTIONS[cls]), random.randint(1, 3))
    given = {name: value(random, name, cls) for name in names}
    made = attempt(lambda: cls(**given))
    for name, each in given.items():
        kept = getattr(made, name)
        derived = each is None or (name in ("edit", "ratios", "blocks") and each in ("auto", (), []))
        assert derived or kept == each or kept in (tuple(each) if isinstance(each, list) else (each,), (each,)), (
            name,
            each,
        )
    if cls is Settings:
        assert Settings(**made.keywords) == made
        unknown = text(random, 1).strip() or "x"
        if unknown not in OPTIONS[Settings]:
            try:
                attempt(lambda: adapt("nowhere", [], **{unknown: 1}))
            except Refused:
                return "kept"
            raise AssertionError(f"the option {unknown!r} was accepted")
    return "kept"


def as_text(random: Random, folder: Path) -> str:
    """As a command line gives one; what is read is what is written again."""
    cls = random.choice((Settings, Fields))
    name = random.choice(sorted(OPTIONS[cls]))
    option = OPTIONS[cls][name]
    if option.kind not in (int, float):
        raise Refused("it is no number")
    typed = random.choice(
        (text(random, 2), "1", "0.5", "1,2", "[1, 8]", "1e9", "-1", "nan", "inf", "", ",", "9" * 5000, "٣")
    )
    found = attempt(lambda: option.read(typed))
    option.check(found)
    return "read"


def from_command_line(random: Random, folder: Path) -> str:
    """By flags and a file of options, for a model that is not there: it ends in a message, whatever it was told."""
    command = random.choice(COMMANDS)
    data, config = folder / "x.jsonl", folder / "run.toml"
    data.write_text('{"prompt": "a", "completion": "b"}\n')
    arguments = [command, str(folder / "no-model")]
    if command in ("adapt", "eval"):
        arguments += ["--data", str(data)]
    for _ in range(random.randint(0, 2)):
        name = random.choice(sorted(OPTIONS[Settings] | OPTIONS[Fields] | OPTIONS[Loading]))
        cls = next(cls for cls, options in OPTIONS.items() if name in options)
        arguments += [f"--{name.replace('_', '-')}", printed(value(random, name, cls))]
    if command == "adapt" and random.random() < 0.5:
        lines = [
            f"{json.dumps(name)} = {json.dumps(printed(value(random, name, Settings)))}" for name in ("count", "seed")
        ]
        broken = random.choice(("", "", "[", "= 1", "x = nan", "seed = 1979-05-27", "count = {a = 1}", "\ud800"))
        config.write_bytes("\n".join([*lines, broken]).encode(errors="replace"))
        arguments += ["--config", str(config)]
    done = CliRunner().invoke(app, arguments)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    assert done.exit_code in (1, 2), (arguments, done.output)
    if done.exit_code == 1:
        readable(done.stderr)
        assert done.stderr.startswith("lasertri: "), done.stderr
    assert "Traceback" not in done.output
    raise Refused(done.output)


def printed(given: object) -> str:
    """As it may be typed: without what no command line can hold."""
    typed = "9" * 5000 if isinstance(given, int) and abs(given) > 10**300 else str(given)
    return typed.replace("\x00", "").encode(errors="replace").decode()
