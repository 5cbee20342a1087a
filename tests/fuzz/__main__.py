"""`python -m tests.fuzz --cases 10000 [--kind rows]`, or `--case rows:17` for one again."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from fuzz.run import KINDS, run, run_case

parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
parser.add_argument("--cases", type=int, default=10_000, help="of all kinds together")
parser.add_argument("--kind", choices=KINDS, action="append", help="only this; may be repeated")
parser.add_argument("--case", metavar="KIND:NUMBER", help="only this, with its traceback")
given = parser.parse_args()
if given.case:
    kind, _, number = given.case.partition(":")
    print(run_case(kind, int(number)))
else:
    kinds = given.kind or list(KINDS)
    sys.exit(sum(run(kind, range(given.cases // len(kinds)), tell=print) for kind in kinds) > 0)
