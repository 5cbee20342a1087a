"""What needs no model starts without torch: version, help, completion, errors of usage."""

import json
import os
import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "datasets", "numpy")
PROBE = f"""
import atexit, json, sys
atexit.register(lambda: print("\\n" + json.dumps([name for name in {HEAVY} if name in sys.modules]), file=sys.stderr))
from lasertri.cli import app
app(prog_name="lasertri")
"""
COMMANDS = ("adapt", "refine", "demo", "apply", "compare", "compress", "eval", "reproduce", "info", "ls")


def start(*arguments, **environment):
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"COLUMNS": "200"} | environment,
    )
    *errors, heavy = done.stderr.strip().splitlines()
    assert json.loads(heavy) == []
    return done.returncode, done.stdout, "\n".join(errors)


def test_version():
    assert start("--version") == (0, f"{__import__('lasertri').__version__}\n", "")


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)])
def test_help_ends_with_an_example(command):
    code, long, _ = start(*command, "--help")
    assert code == 0
    assert long.strip().splitlines()[-1].strip().startswith(f"Example: lasertri {' '.join(command)}")
    assert start(*command, "-h") == (0, long, "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("adapt",), "Missing argument 'MODEL'"),
        (("apply",), "Missing argument 'EDIT'"),
        (("refine",), "Missing argument 'ADAPTER'"),
        (("adapt", "m", "--nope"), "No such option: --nope"),
        (("adapt", "m"), "expected either --data or --task, got neither"),
        (("adapt", "m", "--task", "feverr"), "got 'feverr'; did you mean 'fever'?"),
        (("adapt", "m", "--data", "x", "--ratios", "1.5"), "expected ratios from 0 to 1, got 1.5"),
        (("adapt", "m", "--data", "x", "--ratios", "1"), "expected a retained ratio below 1"),
        (("adapt", "m", "--data", "x", "-q", "many"), "expected count as a whole number, got 'many'"),
        (("adapt", "m", "--data", "x", "--save", "factored"), "--save goes with -o"),
        (("adapt", "m", "--data", "x", "--save", "factored", "-o", "y"), "goes with a truncation, not with a step"),
        (("adapt", "m", "--data", "x", "--merge", "-q", "3"), "expected no merge with edit='truncate'"),
        (("eval", "m", "--data", "x", "--prompt", "q"), "expected a template with fields in braces"),
        (("reproduce", "--table", "3", "--tasks", "fevr"), "expected tasks among"),
        (("compress", "m", "-o", "x", "--memory-budget", "nan"), "expected memory_budget as a number, got 'nan'"),
    ],
)
def test_errors_of_usage(arguments, message):
    code, _, errors = start(*arguments)
    assert code == 2
    assert message in " ".join(errors.replace("│", " ").split())


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("lasertri ad", {"adapt"}),
        ("lasertri adapt --calib", {"--calibration"}),
        ("lasertri adapt --strategy opt", {"optimal-clustering"}),
        ("lasertri adapt --backend c", {"cuda"}),
        ("lasertri eval --task bios", {"bios-gender", "bios-profession"}),
        ("lasertri reproduce --tasks fever,b", {"fever,bios-gender", "fever,bios-profession"}),
    ],
)
def test_a_shell_completes(typed, offered):
    position = str(len(typed.split()) - 1)
    code, out, _ = start(COMP_WORDS=typed, COMP_CWORD=position, _LASERTRI_COMPLETE="complete_bash")
    assert (code, set(out.split())) == (0, offered)


def test_completion_can_be_shown_and_installed(tmp_path):
    forced = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1", "HOME": str(tmp_path)}
    code, out, _ = start("--show-completion", "bash", **forced)
    assert code == 0
    assert "_LASERTRI_COMPLETE=complete_bash" in out
    code, _, _ = start("--install-completion", "bash", **forced)
    assert code == 0
    assert "lasertri" in (tmp_path / ".bashrc").read_text()


def test_threads_that_wait_sleep():
    script = "import lasertri.cli, os, sys; print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"
    for given, found in (({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")):
        environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"} | given
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True
        )
        assert done.stdout.split() == [found, "False"]


@pytest.mark.parametrize(
    ("module", "raised", "said"),
    [
        ("lasertri.cli.adapt", "KeyboardInterrupt", "lasertri: interrupted\n"),
        ("lasertri.cli.adapt", "ImportError('of what a library made of it')", "lasertri: interrupted\n"),
        ("torch", "KeyboardInterrupt", "lasertri: interrupted; what had been finished is kept\n"),
        ("torch", "RecursionError", "lasertri: interrupted; what had been finished is kept\n"),
    ],
)
@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_an_interrupt_while_something_is_imported_is_one_whatever_it_becomes(module, raised, said):
    program = f"""
import importlib.abc, os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs ignore
class Interrupt(importlib.abc.MetaPathFinder):
    def find_spec(self, name, *_):
        if name == "{module}":
            try:
                signal.raise_signal(signal.SIGINT)
            except KeyboardInterrupt:
                raise {raised} from None
sys.meta_path.insert(0, Interrupt())
sys.argv = ["lasertri", "info"]
from lasertri.__main__ import main
main()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, said)
