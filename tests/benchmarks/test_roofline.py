"""What the roofline counts is what runs, at full width; and its seconds are counts times costs."""

from dataclasses import replace

import pytest
import torch

from benchmarks.record import RESULTS
from benchmarks.roofline import report, scaling
from benchmarks.roofline.__main__ import _cost
from benchmarks.roofline.costs import COSTS, seconds
from benchmarks.roofline.count import SCALE, count, full
from benchmarks.roofline.work import Amount, Counting, Kind, Ops
from lasertri import block_svd
from lasertri.errors import LasertriError
from lasertri.ops import compress_tokens, whiten, whiten_blocks
from lasertri.ops.eigen import SOLVED

TOKENS = 40


def counted(run):
    work = {}
    with Counting(lambda: work, full, Ops(SCALE)):
        run()
    return work


def test_a_product_counts_as_that_of_the_full_width():
    inputs, weight = torch.randn(TOKENS, 64), torch.randn(256, 64)
    work = counted(lambda: inputs @ weight.mT)
    numbers = TOKENS * 4096 + 4096 * 16384 + TOKENS * 16384
    assert work == {Kind("product", "float32"): Amount(1, 2 * TOKENS * 4096 * 16384, 4 * numbers)}


def test_a_head_s_width_is_that_of_attention_and_four_tokens_are_not():
    assert full((16, 16, TOKENS, 4)) == (16, 16, TOKENS, 256)
    assert full((16, 16, 4, TOKENS)) == (16, 16, 256, TOKENS)
    assert full((4, 64)) == (4, 4096)


@pytest.mark.parametrize(
    ("narrow", "wide"),
    [
        ((16, 16, 16), (16, 1024, 1024)),  # bases of sixteen blocks of a sixteenth of an MLP's rows
        ((16, 16), (1024, 1024)),  # of one block
        ((TOKENS, 16), (TOKENS, 1024)),
        ((TOKENS, 16, 16), (TOKENS, 16, 1024)),
        ((16, 64), (16, 4096)),  # a batch
        ((64, 16), (4096, 16)),  # a factor of rank 16
        ((32, 32), (2048, 2048)),  # one of eight blocks
    ],
)
def test_sixteen_rows_of_a_block_are_those_of_the_full_width_and_a_batch_or_rank_is_not(narrow, wide):
    assert full(narrow) == wide


def test_factoring_in_eight_blocks_solves_eigenproblems_of_the_full_short_side():
    work = counted(lambda: block_svd(torch.randn(64, 256), blocks=8))
    assert work[Kind("eigh", "float64", 512)].calls == 8
    assert work[Kind("product", "float64")].flops == 2 * 2 * 4096 * 16384 * 512  # A Aᵀ and Aᵀ Q


def test_what_is_larger_than_a_gpu_solves_is_divided_by_products():
    work = counted(lambda: block_svd(torch.randn(256, 64), blocks=8))
    solved = {kind.size: amount.calls for kind, amount in work.items() if kind.name == "eigh"}
    assert max(solved) <= SOLVED
    assert sum(size * calls for size, calls in solved.items()) == 8 * 2048
    steps = 14  # of Newton and Schulz; of a split both products of each, 3/4 of 2 n³ in two bands
    flops = work[Kind("product", "float64")].flops - 2 * 2 * 4096 * 16384 * 2048
    assert 2 * steps * 3 / 4 < flops / (8 * 2 * 2048**3) < 4 * steps * 3 / 4
    assert work[Kind("cholesky_ex", "float64", 2048)].flops == 2 * 8 * (2048**3 // 3)


def eigenproblems_of_a_step(tokens):
    deltas, inputs = torch.randn(tokens, 256), torch.randn(tokens, 64)
    work = counted(lambda: whiten_blocks(deltas, inputs, rank=32, precision="float32"))
    return {(kind.size, amount.calls) for kind, amount in work.items() if kind.name == "eigh"}


def test_where_there_are_fewer_tokens_than_features_a_step_solves_for_tokens():
    assert eigenproblems_of_a_step(608) == {(608, 3)}


@pytest.mark.slow
def test_a_gpu_solves_only_for_what_it_passes_over(monkeypatch):
    monkeypatch.setattr(whiten, "BY_PRODUCTS", {"cpu"})
    sizes = sorted(size for size, _ in eigenproblems_of_a_step(1136))
    passes = (3, 6, 9, 12, 13, 14)  # after which it is looked at what is found
    assert sizes == [40 * own for own in passes[: len(sizes)]], "the basis grows by a block each time"
    assert sizes[-1] <= 1136 / 2


def test_fewer_tokens_than_features_are_compressed_by_an_eigenproblem_of_the_tokens():
    sides = {"inputs": torch.randn(1280, 64), "deltas": torch.randn(1280, 256), "most": 467}
    work = Ops(SCALE)(compress_tokens, sides)
    solved = {kind.size: amount.calls for kind, amount in work.items() if kind.name == "eigh"}
    assert max(solved) <= SOLVED
    assert sum(size * calls for size, calls in solved.items()) == 1280


def test_seconds_are_the_larger_of_flops_and_bytes_and_eigenproblems_add_up():
    costs = COSTS | {name: replace(COSTS[name], value=1.0) for name in ("efficiency", "bandwidth-efficiency")}
    peak, bandwidth = costs["bfloat16"].value, costs["bandwidth"].value
    work = {
        Kind("product", "bfloat16"): Amount(1, int(2 * peak), int(bandwidth)),
        Kind("traffic"): Amount(1, 0, int(3 * bandwidth)),
        Kind("eigh", "float64", 2048): Amount(7),
    }
    found = seconds(work, costs)
    assert found.bound == "traffic"
    low, high = (7 * 9 * 2048**3 / rate for rate in costs["eigen-large"].ends)
    assert found.total == pytest.approx((5 + low, 5 + high))


def test_a_batch_of_small_eigenproblems_takes_as_long_as_one_alone():
    alone, together = (seconds({Kind("eigh", "float64", 100): Amount(8, batches=n)}).total[1] for n in (8, 1))
    assert alone == pytest.approx(8 * together)


def test_ops_of_no_size_take_as_long_as_they_take_to_call():
    assert seconds({Kind("traffic"): Amount(1000)}).total == (1000 * COSTS["launch"].value,) * 2


def test_costs_are_given_by_name():
    assert _cost("bandwidth=3.35e12")[1].ends == (3.35e12, 3.35e12)
    for wrong in ("speed=1", "bandwidth", "bandwidth=fast"):
        with pytest.raises(LasertriError, match="expected --cost NAME=VALUE"):
            _cost(wrong)


@pytest.fixture(scope="module")
def record():
    return report.read_counts(RESULTS / "roofline.json")


def test_ranking_by_record_factors_every_mlp_in_sixteen_blocks_and_a_second_task_none(record):
    first, second = (next(c for c in record if (c.edit, c.task, c.budget) == ("truncate", n, 60)) for n in (1, 2))

    def solved(counted, size):
        work = [phases.get(Kind("eigh", "float64", size), Amount()) for phases in counted.phases.values()]
        return sum(amount.calls for amount in work)

    # of the smaller and the larger side's blocks, the solver gets the former as they are
    assert solved(first, 256) == 28 * 16
    assert solved(first, 1024) >= 28 * 16
    assert solved(second, 256) == 0


def test_the_text_says_that_it_is_a_model_and_has_every_run(record):
    text = report.text(record)
    assert text.startswith("This is a model, not a measurement")
    for run in record:
        assert f"\n{run.edit}, task {run.task}, memory budget {run.budget} GiB\n" in text


def test_the_page_has_the_tables_that_are_printed(record):
    printed = report.text(record).partition("\nGoals\n")[2].splitlines()
    page = (RESULTS.parents[1] / "docs/scaling.md").read_text(encoding="utf-8").splitlines()
    assert [line for line in printed if line.startswith("| ") and line not in page] == []


def test_gpus_that_hold_a_model():
    assert [scaling.least_gpus(size * 1e9) for size in (14, 150, 900, 2000)] == [1, 2, 8, None]
    assert scaling.GPTJ.numbers == pytest.approx(6.05e9, rel=0.01)


@pytest.mark.slow
def test_a_step_is_counted_by_the_code_that_makes_it():
    [phases] = count("step", 60 << 30, layers=2, tasks=1)
    one_pass = 2 * 100 * TOKENS * 2 * 12 * 4096**2  # 100 samples through two layers' matrices
    assert phases["baseline"][Kind("product", "bfloat16")].flops == pytest.approx(one_pass, rel=0.05)
    assert max(kind.size for kind in phases["trials"] if kind.name == "eigh") < 2000 / 2
    # of matrices, folds and sides of the first layer (the last has few tokens) products as large as a fold has tokens
    roots = 2**3 * 20 * 2 * 2000**3
    assert roots < phases["trials"][Kind("product", "float64")].flops < 2 * roots
    assert phases["trials"][Kind("sha256 ahead")].bytes == 2 * 2 * 2 * 4096 * 16384
