"""Compression keeps the share that was asked for, and leaves alone what it would not make smaller."""

import copy
import json

import pytest
import torch
from typer.testing import CliRunner

import lasertri
from lasertri import LasertriError, compress
from lasertri.cli import app
from lasertri.compression import Retention
from lasertri.factored.layer import FactoredLinear
from lasertri.model.targets import find_targets

INPUTS = torch.arange(12).reshape(2, 6)


def decaying(model):
    """The same model with weights whose singular values fall, as those of trained models do."""
    for target in find_targets(model, "."):
        stored = target.parameter(model)
        u, s, vh = torch.linalg.svd(stored.detach().double(), full_matrices=False)
        with torch.no_grad():
            stored.copy_((u * (s[0] * 0.6 ** torch.arange(len(s)))) @ vh)
    return model


def blocks_of(weight, count):
    height, longer = divmod(len(weight), count)
    return weight.double().split([height + (j < longer) for j in range(count)])


@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("energy", [0.9, 0.99])
@pytest.mark.parametrize("architecture", ["gptj", "gpt2", "llama"])
def test_every_block_keeps_the_energy_at_the_lowest_rank(model_of, architecture, energy, blocks):
    model = decaying(model_of(architecture))
    before = copy.deepcopy(model)
    report = compress(model, energy=energy, blocks=blocks, progress=False)
    assert report.count == len(report.matrices) >= 6
    for matrix in report.matrices:
        weight = matrix.target.view(matrix.target.parameter(before))
        product = model.get_submodule(str(matrix.target)).product()
        parts = zip(blocks_of(weight, blocks), blocks_of(product, blocks), matrix.ranks, strict=True)
        for block, kept, rank in parts:
            sigma = torch.linalg.svd(block)[1].square()
            assert kept.square().sum() >= (energy - 1e-6) * block.square().sum()
            if rank is None:  # then the lowest rank is one whose factors are not smaller
                rank = int((sigma.cumsum(0) < energy * sigma.sum()).sum()) + 1
                assert rank * sum(block.shape) >= block.numel()
            assert sigma[:rank].sum() >= energy * sigma.sum() > sigma[: rank - 1].sum()
        error = (weight.double() - product).norm() / weight.double().norm()
        assert matrix.error == pytest.approx(float(error))
        assert matrix.error <= (1 - energy) ** 0.5 + 1e-6


def test_a_share_of_the_rank(model):
    report = compress(model, rank=0.3, targets=r"mlp\.fc_in", blocks=3, progress=False)
    assert [matrix.ranks for matrix in report.matrices] == [(4, 3, 3)] * 3  # int(min(b, n) 0.3) of 14, 13, 13 rows


def test_what_would_not_get_smaller_is_left_bit_for_bit(model):
    before = copy.deepcopy(model.state_dict())
    report = compress(model, energy=0.999, progress=False)
    assert report.count == report.error == 0
    assert report.parameters[0] == report.parameters[1]
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())


def test_blocks_that_do_not_pay_keep_their_rows(model):
    target = find_targets(model, r"h\.1\.mlp\.fc_in")[0]
    with torch.no_grad():  # the first of two blocks has rank 1
        target.parameter(model)[:20] = torch.outer(torch.arange(1.0, 21.0), torch.ones(16))
    rows = target.parameter(model).detach()[20:].clone()
    report = compress(model, energy=0.999, targets=r"h\.1\.mlp\.fc_in", blocks=2, progress=False)
    assert report.matrices[0].ranks == (1, None)
    assert model.get_submodule(str(target)).product(torch.float32)[20:].equal(rows)


def test_a_zero_block_has_rank_zero(model):
    with torch.no_grad():
        model.transformer.h[0].mlp.fc_out.weight.zero_()
    report = compress(model, energy=0.5, targets=r"h\.0\.mlp\.fc_out", progress=False)
    assert (report.matrices[0].ranks, report.error) == ((0,), 0)


def test_sizes_are_those_of_the_model(model_of, tmp_path):
    model = decaying(model_of("llama", dtype=torch.bfloat16))
    lasertri.save(model, tmp_path / "before")
    report = compress(model, energy=0.9, targets=".", progress=False)
    assert report.bytes[1] == sum(p.nbytes for p in model.parameters()) < report.bytes[0]
    assert report.parameters[1] == sum(p.numel() for p in model.parameters())
    saved = report.parameters[0] - report.parameters[1]
    assert saved == sum(matrix.parameters[0] - matrix.parameters[1] for matrix in report.matrices)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    lasertri.save(model, tmp_path / "after")
    sizes = [sum(p.stat().st_size for p in (tmp_path / name).glob("model*")) for name in ("before", "after")]
    assert sizes[0] - sizes[1] > 0.5 * (report.bytes[0] - report.bytes[1])  # tiny tensors: headers count
    loaded = lasertri.load(tmp_path / "after")
    assert loaded(INPUTS).logits.equal(model(INPUTS).logits)
    assert loaded.generate(INPUTS, max_new_tokens=3, do_sample=False, pad_token_id=1).shape == (2, 9)
    assert f"{report.count} of {len(report.matrices)} matrices factored" in str(report)


def test_shared_weights_are_no_targets(model_of):
    model = model_of("llama", tie_word_embeddings=True)
    with pytest.raises(LasertriError, match="expected a module path that matches 'lm_head'"):
        compress(model, energy=0.9, targets="lm_head", progress=False)


def test_a_failure_leaves_the_model_as_it_was(model, monkeypatch):
    decaying(model)
    calls = iter(range(2))
    factored = lasertri.compression.factored

    def stop(*arguments):
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return factored(*arguments)

    monkeypatch.setattr("lasertri.compression.factored", stop)
    with pytest.raises(KeyboardInterrupt):
        compress(model, energy=0.9, progress=False)
    assert not any(isinstance(module, FactoredLinear) for module in model.modules())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "got neither"),
        ({"energy": 0.9, "rank": 0.5}, "got both"),
        ({"energy": 0.0}, "energy above 0"),
        ({"energy": float("nan")}, "energy above 0"),
        ({"rank": 64}, "share from 0 to 1"),
        ({"rank": 0.5, "blocks": 17}, "expected between 1 and 16 blocks"),
        ({"rank": 0.5, "memory_budget": 1}, "memory budget of at least"),
        ({"rank": 0.5, "targets": "nowhere"}, "saw 3 ×"),
    ],
)
def test_options_that_cannot_work_fail_first(model, options, message):
    with pytest.raises(LasertriError, match=message):
        compress(model, progress=False, **options)


def test_nan_weights_are_named(model):
    with torch.no_grad():
        model.transformer.h[2].mlp.fc_in.weight[3, 4] = torch.nan
    with pytest.raises(LasertriError, match=r"NaN or Inf in transformer\.h\.2\.mlp\.fc_in"):
        compress(model, energy=0.9, progress=False)


def test_all_energy_is_the_whole_rank_of_a_block():
    factors = lasertri.block_svd(torch.diag(torch.tensor([3.0, 2.0, 0.0, 0.0])))
    assert Retention(energy=1.0).ranks(factors) == [2]
    assert Retention(energy=9 / 13).ranks(factors) == [1]


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_the_command_writes_what_it_reports(folder, tmp_path):
    arguments = ["compress", folder, "--rank", "0.2", "--targets", "fc_in", "--blocks", "2"]
    result = run(*arguments, "-o", tmp_path / "out", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["factored"], found["output"]) == (3, str(tmp_path / "out"))
    loaded = lasertri.load(tmp_path / "out")
    assert sum(p.nbytes for p in loaded.parameters()) == found["bytes"]["after"] < found["bytes"]["before"]
    result = run(*arguments, "-o", tmp_path / "out")
    assert (result.exit_code, "--overwrite" in result.stderr) == (1, True)
    result = run(*arguments, "-o", tmp_path / "out", "--overwrite")
    assert (result.exit_code, "3 of 3 matrices factored" in result.stdout) == (0, True)


def test_the_command_writes_nothing_where_nothing_gets_smaller(folder, tmp_path):
    result = run("compress", folder, "--energy", "0.999", "-o", tmp_path / "out")
    assert result.exit_code == 0
    assert "nothing written" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("options", [[], ["--energy", "2"], ["--energy", "0.9", "--rank", "0.1"], ["--rank", "-1"]])
def test_usage_errors_exit_with_2(folder, tmp_path, options):
    assert run("compress", folder, "-o", tmp_path / "out", *options).exit_code == 2
