"""Work that is killed as it writes to its journal, and begun again until it comes to its end."""

import itertools
import json
import uuid

from lasertri.support import journal

WHENS = ("before", "torn", "after")


class Killed(BaseException):
    """As by SIGKILL: from then on nothing is written."""


class Killer:
    """Has every record written at once, and the process die at one of these writes: before, in the middle, or after.

    Attributes:
        written: how many files were.
    """

    def __init__(self, monkeypatch):
        self.at, self.when, self.written = None, "after", 0
        self._replace = journal.replace_file
        monkeypatch.setattr(journal, "EVERY", 0)
        monkeypatch.setattr(journal, "replace_file", self._write)

    def _write(self, path, content, **options):
        if self.at is not None and self.written >= self.at:
            raise Killed  # dead by now
        last = self.at is not None and self.written + 1 == self.at
        if last and self.when == "torn":
            path.with_name(f"{path.name}.{uuid.uuid4().hex}").write_bytes(content[: len(content) // 2])
        if not last or self.when == "after":
            self._replace(path, content, **options)
        self.written += 1
        if last:
            raise Killed

    def until_it_ends(self, work, at, when="after"):
        """What work gives that is killed at this write of every time that it is begun; and how often it was."""
        for times in itertools.count():
            self.at, self.when, self.written = at, when, 0
            try:
                return work(), times
            except Killed:
                pass
            finally:
                self.at = None


def without_times(result):
    """A result's JSON, as bytes, but for seconds."""

    def cut(value):
        if isinstance(value, dict):
            return {name: cut(each) for name, each in value.items() if not name.startswith("seconds")}
        return [cut(each) for each in value] if isinstance(value, list | tuple) else value

    return json.dumps(cut(result), indent=2).encode()
