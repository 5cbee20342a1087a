"""What `bench_truncations` knows of a truncation before its trial is what the truncation does at first order."""

import sys
from pathlib import Path

import pytest
import torch
from tiny import make_model

from lasertri.edit.candidate import Candidate
from lasertri.model.targets import find_linear_layers
from lasertri.ops import reduce_blocks

sys.path.append(str(Path(__file__).parents[2]))  # benchmarks that are modules of a package
from benchmarks import bench_truncations as bench


@pytest.mark.parametrize("blocks", [1, 3])
def test_features_of_a_truncation(blocks):
    torch.manual_seed(0)
    target = find_linear_layers(make_model("gptj"))[0]
    rows, columns = target.shape
    weight = torch.randn(rows, columns)
    pieces = [(torch.randn(t, columns), torch.randn(t, rows)) for t in (3, 5)]
    candidate = Candidate(target, blocks, 0.5)
    change = reduce_blocks(weight, blocks=blocks, ratios=0.5) - weight
    found = bench.features(weight, candidate, pieces)
    along = torch.stack([(deltas.mT @ inputs * change).sum() for inputs, deltas in pieces])
    assert found["taylor"] == pytest.approx(float(along.mean()), rel=1e-4)
    assert found["squares"] == pytest.approx(float(along.square().mean()), rel=1e-4)
    outputs = torch.cat([inputs @ weight.mT for inputs, _ in pieces])
    errors = torch.cat([inputs @ change.mT for inputs, _ in pieces])
    assert found["change"] == pytest.approx(float(errors.square().sum() / outputs.square().sum()), rel=1e-4)
    assert 0 < found["change"] <= found["worst"]
    assert 0 < found["mean"] <= found["worst"]


def test_a_score_that_foretells_everything_is_seen_to():
    named = dict.fromkeys(("squares", "tokens", "norms", "change", "mean", "paper"), 0.0)
    rows = [
        {"baseline": {"loss": 2.0}, "trials": [{"loss": 2 + c, "taylor": 3 * c, **named} for c in changes]}
        for changes in ((0.1, 0.4), (-0.3, 0.2), (0.5, 0.6))
    ]
    first = next(line for line in bench.table(rows).splitlines() if line.startswith("taylor "))
    assert first.split()[1:] == ["1.00", "1.00", "0.000", "0.000"]
