"""Every kernel compiles for the GPUs it is meant for, fits them, and uses their tensor cores where meant."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from marks import slow
from spectra import gaussian

from lasertri.ops import gram
from lasertri.ops.products import TORCH, Products

ROOT = Path(__file__).parents[2]
RECORD = ROOT / "benchmarks/results/kernel_resources.json"
KERNELS = set(Products._fields)
GPUS = (80, 86, 89, 90, 100, 120)
resources = pytest.importorskip("kernel_resources", reason="triton is not installed", exc_type=ImportError)


@pytest.fixture(
    scope="module", params=["record", ("--quick", "--capability", "80", "--capability", "90"), slow(())], ids=str
)
def rows(request, tmp_path_factory):
    if request.param == "record":
        return json.loads(RECORD.read_text(encoding="utf-8"))["rows"]
    path = tmp_path_factory.mktemp("resources") / "rows.json"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", ROOT / "benchmarks/kernel_resources.py", *request.param, "-o", path]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert path.exists(), done.stdout + done.stderr
    return json.loads(path.read_text(encoding="utf-8"))["rows"]


def test_every_kernel_is_compiled_for_every_generation(rows):
    for capability in {row["capability"] for row in rows} | {80, 90}:
        assert {row["kernel"] for row in rows if row["capability"] == capability} == KERNELS


def test_none_asks_for_more_than_there_is(rows):
    for row in rows:
        assert row["faulty"] == 0, row
        assert row["registers"] <= 255, row
        assert row["shared"] <= {80: 163, 90: 227, 100: 227}.get(row["capability"], 99) * 1024, row


def test_tensor_cores_multiply_everything_but_ieee_fp32(rows):
    instructions = {"float64": "DMMA", "tf32x3": "TF32", "tf32": "TF32", "half": "F32"}
    for row in rows:
        if row["arithmetic"] == "ieee" or (row["arithmetic"] == "float64" and row["capability"] in (86, 89, 120)):
            assert row["tensor_core"] == "", row
        elif row["capability"] == 100 and row["arithmetic"] != "float64":
            assert "UTCHMMA" in row["tensor_core"], row
        elif row["capability"] != 100:
            assert instructions[row["arithmetic"]] in row["tensor_core"], row
        if row["capability"] == 90 and row["arithmetic"] in ("tf32x3", "tf32", "half"):
            assert "HGMMA" in row["tensor_core"], row


def test_the_record_is_of_these_kernels_tiles_and_layouts():
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    cases = list(resources.cases())
    assert record["specialisations"] == len(GPUS) * len(cases)
    expected = {
        (
            case.kernel,
            resources.arithmetic(case.compute, case.precision),
            capability,
            resources.tiles_of(case, capability),
        )
        for case, capability in itertools.product(cases, GPUS)
    }
    assert {
        (row["kernel"], row["arithmetic"], row["capability"], tiles) for row in record["rows"] for tiles in row["tiles"]
    } == expected


def test_every_layout_that_the_ops_ask_for_is_among_the_cases():
    asked = set()

    def noted(kernel):
        def product(*given, compute):
            stacks = [value for value in given if isinstance(value, torch.Tensor) and value.ndim > 2]
            turned = "".join("r" if stack.stride(-1) == 1 else "c" for stack in stacks)
            biased = kernel == "prefix_product" and len(given) == 5 and given[4] is not None
            asked.add((kernel, turned + "r" * biased))
            return getattr(TORCH, kernel)(*given, compute=compute)

        return product

    products = Products(*map(noted, Products._fields))
    for rows, columns, turned in itertools.product((24, 40), (24, 40), (False, True)):
        blocks = gaussian(2, columns, rows).mT if turned else gaussian(2, rows, columns)
        side = "left" if rows <= columns else "right"
        basis, sigma = factors = gram.block_svd(blocks, side, products=products)
        for known, grads in itertools.product((None, factors), (blocks, blocks.contiguous())):
            gram.score_blocks(blocks, grads, side, known, products=products)
        gram.reduce_blocks(blocks, side, [3, 9], basis, products=products)
        gram.scale_blocks(blocks, sigma, side, basis, products=products)
        for bias in (None, gaussian(2, rows)):
            gram.linear_blocks(gaussian(5, columns), blocks, side, [3, 9], basis, None, bias, products=products)
    assert asked <= {(case.kernel, case.turned) for case in resources.cases()}
