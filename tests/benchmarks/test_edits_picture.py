"""The picture of the record of edits: a line for every draw, and known by the record that it was made of."""

import hashlib
import json
import re
from pathlib import Path

import pytest
from running import run_benchmark

ROOT = Path(__file__).parents[2]
RECORD = ROOT / "benchmarks/results/bench_edits.jsonl"


def row(seed, *, accepted):
    fixed = {"model": "SmolLM2-135M-Instruct", "task": "counterfact", "method": "step", "dtype": "float32"}
    held_out = {"accuracy": 0.5, "accuracy_interval": [0.2, 0.4]}
    return fixed | {"seed": seed, "accepted": accepted, "baseline": {"accuracy": 0.2}, "held_out": held_out}


@pytest.mark.slow
def test_only_a_draw_with_an_edit_has_an_interval(tmp_path):
    record, out = tmp_path / "record.jsonl", tmp_path / "picture.svg"
    rows = [row(seed, accepted=seed == 0) for seed in range(3)]
    record.write_text("".join(json.dumps(each) + "\n" for each in rows))
    run_benchmark("edits.picture", "--record", record, "--out", out)
    legend = 2  # an empty one, and its sign
    assert len(re.findall(r'<g id="LineCollection', out.read_text(encoding="utf-8"))) == legend + 1


def test_the_committed_picture_is_of_the_committed_record():
    picture = (ROOT / "docs/images/edits.svg").read_text(encoding="utf-8")
    assert hashlib.sha256(RECORD.read_bytes()).hexdigest() in picture
