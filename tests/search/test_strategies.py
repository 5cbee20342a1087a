"""Every strategy asks for the protocol's candidates, on the protocol's samples."""

import functools

import pytest
import torch
from tiny import make_model, make_samples

from lasertri import Edit, LasertriError, Sample, adapt
from lasertri.data.split import standard_split
from lasertri.demo import MODEL_DIR
from lasertri.demo.recall import samples as recall_samples
from lasertri.edit.candidate import Candidate
from lasertri.model.targets import Target, find_targets
from lasertri.ops.laser import laser_factors, laser_rank
from lasertri.search.settings import Settings
from lasertri.search.strategies import STRATEGIES


def requested(name, layers, roles=("fc_in", "fc_out")):
    targets = [Target(f"h.{i}.{role}.weight", i, role, False, (64, 16)) for i in range(layers) for role in roles]
    settings = Settings(strategy=name)
    return list(
        settings.plan.candidates(targets, count=settings.count, block_counts=settings.blocks, ratios=settings.ratios)
    )


@pytest.mark.parametrize(
    ("name", "gptj", "roberta"),
    [
        ("laser", 504, 216),
        ("laser-grads", 45, 45),
        ("laser-100-eval", 504, 216),
        ("laser-100-grads", 45, 45),
        ("laser-100-grads-100-eval", 45, 45),
        ("clustering-laser", 4 * 504, 4 * 216),
        ("clustering-100-grads-std-eval", 180, 180),
        ("clustering-100-grads-100-eval", 200, 200),  # the paper's 180, and zero at every K
        ("optimal-clustering", 180, 180),
    ],
)
def test_the_grids_have_the_protocols_sizes(name, gptj, roberta):
    assert (len(requested(name, 28)), len(requested(name, 12))) == (gptj, roberta)


SMALL = {"ratios": (0.5, 0.1), "blocks": (1, 2), "count": 2, "progress": False}


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_runs_on_the_demo(name):
    strategy = STRATEGIES[name]
    small = SMALL if strategy.several_blocks else SMALL | {"blocks": ()}
    result = adapt(str(MODEL_DIR), recall_samples(120, seed=3), strategy=name, accept="best", **small)
    figures = result.to_dict()
    standard = strategy.evaluation == "standard"
    assert figures["baseline"]["n"] == (24 if standard else 60)
    assert result.held_out.baseline.n == (96 if standard else 60)
    assert figures["candidates"]["requested"] == (2 if strategy.gradients else 4) * 2 * (
        2 if strategy.several_blocks else 1
    )
    assert (max(entry["score"] for entry in figures["scores"]) == 0) == (strategy.gradients is None)


def test_the_standard_split_is_the_first_fifth_in_order_without_shared_groups():
    samples = [Sample(f"{i} a", "b", group=str(i // 3)) for i in range(150)]
    split = standard_split(samples)
    assert split.calibration == samples[:30]
    assert split.held_out == samples[30:]
    shifted = standard_split(samples[1:])  # rows 28, 29 and 30 of it are a group that the boundary cuts
    assert shifted.calibration == samples[1:30]
    assert shifted.held_out == samples[30:]
    cut = standard_split(samples[:148] + samples[:2])
    assert cut.held_out == samples[30:148]  # the last two are of the first group
    with pytest.raises(LasertriError, match="first fifth of the rows, got 19 of 99"):
        standard_split(samples[:99])


def test_clustered_edits_apply_and_load_again(tokenizer, tmp_path):
    model = make_model("gpt2")
    result = adapt(model, make_samples(48), tokenizer=tokenizer, strategy="optimal-clustering", accept="best", **SMALL)
    assert result.edit is not None
    assert result.edit.candidate.clustered
    result.save(tmp_path / "out")
    loaded = Edit.load(tmp_path / "out")
    assert torch.equal(loaded.weight, result.edit.weight)
    target = loaded.candidate.target
    clusters = loaded.weight[loaded.order].split([len(part) for part in loaded.left])
    dimension = loaded.candidate.dimension
    assert all(torch.linalg.matrix_rank(cluster, rtol=1e-4) <= dimension for cluster in clusters)
    assert target.view(target.parameter(model)).shape == loaded.weight.shape


def test_lasers_ranks_are_those_of_its_float_arithmetic():
    listed = [0.9, 0.8, 0.6, 0.4, 0.2, 0.1, 0.05, 0.01, 0.005]
    assert [laser_rank(4096, ratio) for ratio in listed] == [3686, 3276, 2457, 1638, 819, 409, 204, 40, 20]
    assert [laser_rank(768, ratio) for ratio in listed] == [691, 614, 460, 307, 153, 76, 38, 7, 3]
    assert laser_rank(4096, 0.0) == 0
    assert laser_rank(100, 0.01) == 0 != int(100 * 0.01)


def test_lasers_svd_is_seeded_and_leaves_the_random_state():
    weight = torch.randn(40, 20, generator=torch.Generator().manual_seed(0))
    state = torch.get_rng_state()
    first, second = laser_factors(weight, 5), laser_factors(weight, 5)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(map(torch.equal, first, second))
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    optimum = (weight - (u[:, :5] * s[:5]) @ vh[:5]).norm()
    assert optimum <= (weight - first[0] @ first[1]).norm() <= 1.2 * optimum


def test_laser_compat_edits_are_what_its_code_writes(tokenizer):
    model = make_model("gptj")
    run = functools.partial(adapt, model, make_samples(100), tokenizer=tokenizer, accept="best", progress=False)
    result = run(strategy="laser-grads", svd="laser-compat", ratios=(0.5, 0.0))
    assert result.edit is not None
    target = result.edit.candidate.target
    left, right = laser_factors(target.view(target.parameter(model)), result.edit.candidate.ranks[0])
    torch.testing.assert_close(result.edit.weight, left @ right)
    with pytest.raises(LasertriError, match=r"'laser-compat' goes with \['laser', "):
        run(svd="laser-compat")


def test_a_small_ratio_of_clusters_is_one_dimension_for_all():
    target = find_targets(make_model("gptj"))[0]  # 40 x 16
    assert Candidate(target, 4, 0.5, clustered=True).ranks == (5, 5, 5, 5)
    assert Candidate(target, 1, 0.5, clustered=True).ranks == (8,)


def test_unknown_strategies_are_named():
    with pytest.raises(LasertriError, match="expected strategy among .*got 'magic'"):
        Settings(strategy="magic")


def test_a_strategy_of_one_block_needs_rows_for_no_more():
    assert Settings(strategy="laser-100-eval").blocks == (1,)
    assert Settings(edit="truncate").blocks == (1, 2, 4, 8)
    with pytest.raises(LasertriError, match="expected no blocks with strategy laser, which tries K = 1"):
        Settings(strategy="laser", blocks=(2, 4))
