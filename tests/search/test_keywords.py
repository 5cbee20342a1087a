"""The keywords of `adapt` that type checkers see are the options of `Settings`.

`python tests/search/test_keywords.py` writes them again after a change.
"""

import json
from pathlib import Path

from lasertri.search import keywords
from lasertri.search.settings import Settings
from lasertri.support.options import declared

HEAD = '''\
"""The keywords of `adapt`, for type checkers and editors; written from `Settings` by tests/search/test_keywords.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypedDict


class SettingsKeywords(TypedDict, total=False):
    """The options of `Settings`, none of which needs to be given."""

'''


def written():
    lines = []
    for name, option in declared(Settings).items():
        kind = option.kind.__name__
        if option.names:
            names = [*map(json.dumps, option.names), *["None"] * option.optional]
            kind = f"Literal[{', '.join(names)}]"
            if len(f"    {name}: {kind}") > 120:
                kind = "\n        ".join(["Literal[", *(f"{each}," for each in names)]) + "\n    ]"
        if option.several:
            kind = f"{kind} | Sequence[{kind}]"
        elif option.optional and not option.names:
            kind = f"{kind} | None"
        lines.append(f"    {name}: {kind}\n")
    return HEAD + "".join(lines)


def test_they_are_written_from_the_settings():
    assert Path(keywords.__file__).read_text(encoding="utf-8") == written()


if __name__ == "__main__":
    Path(keywords.__file__).write_text(written(), encoding="utf-8")
