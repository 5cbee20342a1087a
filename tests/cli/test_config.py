"""`--config`: options in a file, by the names they have on the command line, which wins over it."""

import dataclasses

import pytest
from typer.testing import CliRunner

from lasertri.cli import app
from lasertri.search.settings import OWN_OPTIONS, Settings
from lasertri.support.options import declared

GIVEN = {
    "edit": ("truncate", "truncate"),
    "direction": ("plain", "plain"),
    "rank": (4, 4),
    "merge": (True, True),
    "strategy": ("laser", "laser"),
    "targets": (r"h\.0", r"h\.0"),
    "count": (3, 3),
    "ratios": ([0.5, 0.25], (0.5, 0.25)),
    "blocks": ([1], (1,)),
    "svd": ("laser-compat", "laser-compat"),
    "scoring_blocks": (2, 2),
    "race": (False, False),
    "calibration": (40, 40),
    "held_out_limit": (50, 50),
    "confirm": (0, 0),
    "score": ("paper", "paper"),
    "accept": ("best", "best"),
    "max_kl": (0.5, 0.5),
    "max_edits": (2, 2),
    "normalize": (True, True),
    "delimiter": ("\n", "\n"),
    "chat": (True, True),
    "seed": (7, 7),
    "batch_size": (4, 4),
    "backend": ("gram", "gram"),
    "memory_budget": (0.5, 1 << 29),
    "progress": (False, False),
}


@pytest.fixture
def adapted(monkeypatch, tmp_path):
    """Runs the command up to where it loads a model, and returns what it would adapt with."""
    data = tmp_path / "train.jsonl"
    data.write_text('{"prompt": "a", "choices": ["x", "y"], "label": 1}\n')
    found = []
    monkeypatch.setattr("lasertri.cli.adapt.run", lambda *arguments, **_: found.append(arguments))

    def run(lines, *arguments):
        config = tmp_path / "run.toml"
        config.write_text("\n".join(lines))
        result = CliRunner().invoke(app, ["adapt", "--config", str(config), *map(str, arguments)])
        assert result.exit_code == 0, result.output
        model, samples, _, settings, *_ = found.pop()
        return model, samples, settings

    run.lines = ['model = "m"', f"data = '{data}'"]
    return run


def toml(value):
    return str(value).lower() if isinstance(value, bool) else repr(value)


def test_every_option_can_be_in_a_file(adapted):
    assert list(GIVEN) == [field.name for field in dataclasses.fields(Settings)]
    for kind in ("truncate", "step"):
        left_out = set().union(*OWN_OPTIONS.values()) - OWN_OPTIONS[kind]
        given = {name: both for name, both in GIVEN.items() if name not in left_out} | {"edit": (kind, kind)}
        lines = [f"{name} = {toml(value)}".replace(r"'\n'", r'"\n"') for name, (value, _) in given.items()]
        model, samples, settings = adapted([*adapted.lines, *(line.replace(r"h\\.", r"h\.") for line in lines)])
        assert (model, len(samples)) == ("m", 1)
        assert settings == Settings(**{name: value for name, (_, value) in given.items()})
        assert all(getattr(settings, name) != declared(Settings)[name].default for name in given)


def test_the_command_line_wins(adapted):
    lines = [*adapted.lines, "count = 3", "race = false", "held-out-limit = 9"]
    _, _, settings = adapted(lines, "-q", "2", "--race")
    assert (settings.count, settings.race, settings.held_out_limit) == (2, True, 9)


def test_without_a_file_the_defaults_are_those_of_python(adapted):
    assert adapted(adapted.lines)[2] == Settings()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("calibraton = 40", "expected the name of an option, got 'calibraton'; did you mean 'calibration'?"),
        ("zzz = 40", "adapt --help lists them"),
        ("q = 4", "got 'q'"),
        ("calibration = 40.5", "expected calibration as a whole number, got '40.5'"),
        ("calibration = true", "expected calibration as a whole number, got 'true'"),
        ("calibration = 4", "expected calibration of at least 20, got 4"),
        ("[calibration]\na = 1", "expected calibration as a whole number"),
        ("race = 'perhaps'", "Invalid value for '--race'"),
        ("score = 'magic'", "'magic' is not one of 'fisher', 'taylor', 'paper'"),
        ("calibration =", "expected TOML"),
    ],
)
def test_what_a_file_cannot_say(tmp_path, text, message):
    (tmp_path / "run.toml").write_text(text)
    command = ["adapt", "m", "--data", "x", "--config", str(tmp_path / "run.toml")]
    result = CliRunner().invoke(app, command, env={"COLUMNS": "300"})
    assert result.exit_code == 2
    assert message in " ".join(result.output.replace("│", " ").split())


def test_a_file_that_is_not_there(tmp_path):
    result = CliRunner().invoke(app, ["adapt", "m", "--config", str(tmp_path / "none.toml")])
    assert result.exit_code == 2
    assert "expected a TOML file" in " ".join(result.output.replace("│", " ").split())
