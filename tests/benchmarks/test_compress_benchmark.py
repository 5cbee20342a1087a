"""The record of compression on a tiny model: plain beside whitened, and a second run that measures nothing twice."""

import json

import pytest
from running import run_benchmark
from tiny import make_samples


def run(folder, out, *options):
    run_benchmark("bench_compress", "--model", folder, "--out", out, *options)
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


@pytest.mark.slow
def test_every_row_is_whole_and_measured_once(folder, tmp_path):
    text, record = tmp_path / "text.txt", tmp_path / "rows.jsonl"
    text.write_text(" ".join(sample.prompt for sample in make_samples(400)), encoding="utf-8")
    rows = run(folder, record, "--text", text, "--keeps", "0.5")
    assert [(row["factors"], row["keep"]) for row in rows] == [("plain", 0.5), ("whitened", 0.5)]
    for row in rows:
        assert row["bytes"][1] < row["bytes"][0]
        assert row["side_effects"]["kl"] > 0
        assert row["machine"]["commit"]
    assert run(folder, record, "--text", text, "--keeps", "0.5,0.25")[:2] == rows
