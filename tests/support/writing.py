"""Small results, written with a fault at the n-th operation on files, for every n: `python writing.py MODE FAULT`.

Each is written by a process of its own, and looked at afterwards, at once and after lasertri has run again. It imports
no torch: a process so small is soon made.
"""

import errno
import os
import re
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from lasertri import LasertriError
from lasertri.support import output_folder
from lasertri.support.output_folder import FILES_NAME, OutputFolder
from lasertri.support.workspace import is_workspace

MODES = ("new", "exchanged", "moved", "new, stays", "stays")
AUDITED = {"os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.chmod", "os.scandir", "os.listdir", "fcntl.flock"}
DONE, WRONG, FEWER = 0, 1, 2  # how a child ends: there are fewer operations than the one with the fault


def write(directory, name="new", **options):
    """A result of two files and a configuration, each of which says its name."""
    with OutputFolder(directory, **options).written(rescue=lambda f: (f / "edit").write_text(name)) as folder:
        (folder / "adapter").mkdir()
        for file in (name, "adapter/weights", "config.json"):
            (folder / file).write_text(name)


def read(directory):
    """Contents by path, but for lasertri's own list of them."""
    paths = (path.relative_to(directory) for path in directory.rglob("*") if path.is_file())
    shown = (path for path in paths if path.name != FILES_NAME and not is_workspace(path.parts[0]))
    return {path.as_posix(): (directory / path).read_text() for path in shown}


def result(name):
    return {name: name, "adapter/weights": name, "config.json": name}


def no_exchange(*_):
    raise OSError(errno.ENOSYS, "Function not implemented")


def killed(count, at):
    if count == at:
        os.kill(os.getpid(), signal.SIGKILL)


def full(count, at):
    if count == at:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_from_then_on(count, at):
    full(min(count, at), at)


FAULTS = {function.__name__: function for function in (killed, full, full_from_then_on)}


def outcomes(out, fault):
    """Of a result written with a fault at the first operation, the second, …: the message, or None of one killed."""
    for at in range(1, 1000):
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os._exit(attempt(out, fault, at, writing))
        os.close(writing)
        with os.fdopen(reading) as pipe:
            message = pipe.read()
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            yield None
        elif os.WEXITSTATUS(status) == FEWER:
            return
        else:
            assert os.WEXITSTATUS(status) == DONE, message
            yield message


def attempt(out, fault, at, pipe):
    """In a child: how it ends, with a message in the pipe."""
    count, counted = 0, True

    def operation():
        nonlocal count
        if counted:
            count += 1
            fault(count, at)

    def counting(function):
        def run(*arguments):
            operation()
            return function(*arguments)

        return run

    def audit(event, arguments):
        if event in AUDITED or (event == "open" and os.fsdecode(arguments[0]).startswith(str(out.parent))):
            operation()

    # of which no event tells
    os.fsync = counting(os.fsync)
    output_folder.exchange = counting(output_folder.exchange)
    sys.addaudithook(audit)
    message, end = "", DONE
    try:
        write(out, overwrite=True)
    except LasertriError as error:
        message = str(error)
    except BaseException as error:
        message, end = repr(error), WRONG
    counted = False
    os.write(pipe, message.encode())
    return FEWER if count < at and end == DONE else end


def main(mode, fault):
    """Raise where a fault leaves anything but the old result or the new, or loses what was found; else their number."""
    os.fsync = lambda _: None
    output_folder.is_mount = lambda _: mode.endswith("stays")
    if mode == "moved":
        output_folder.exchange = no_exchange
    number = 0
    with tempfile.TemporaryDirectory() as directory:
        (before := Path(directory, "before")).mkdir()
        if mode.endswith("stays"):
            (before / "out").mkdir()
        if not mode.startswith("new"):
            write(before / "out", "old")
        out = Path(directory, "now", "out")
        shutil.copytree(before, out.parent)
        for message in outcomes(out, FAULTS[fault]):
            old = read(before / "out")
            if mode in ("new", "exchanged"):  # at once; else when lasertri ran again
                assert read(out) in (old, result("new"))
            if message == "":
                assert read(out) == result("new")
            elif message is not None:
                check_message(message, once=fault == "full")
            OutputFolder(out, overwrite=True)
            assert read(out) in (old, result("new"))
            assert message in (None, "") or read(out) == old
            write(out, overwrite=True)
            assert read(out) == result("new")
            assert not [path for path in out.parent.rglob("*") if is_workspace(path.name)]
            shutil.rmtree(out.parent)
            shutil.copytree(before, out.parent)
            number += 1
    print(number)


def check_message(message, *, once):
    """One line that says where the result is, or the edit, once a search would have ended with one."""
    assert "\n" not in message
    kept = re.search(r"(it is whole|what was found is kept) in (.*)$", message)
    if kept:
        name = "edit" if kept[1].startswith("what") else "new"
        assert Path(kept[2], name).read_text() == "new"
        shutil.rmtree(kept[2])
    elif once:
        assert "expected a folder that can be written" in message  # before the search


if __name__ == "__main__":
    main(*sys.argv[1:])
