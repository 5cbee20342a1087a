"""Singular values scaled, block by block: never below 0 nor above twice, saved as one number for each."""

import json

import pytest
import safetensors.torch
import torch
from tiny import make_model

from lasertri import Edit, LasertriError
from lasertri.edit.edit import CONFIG_NAME, FACTORS_NAME
from lasertri.edit.shrink import Shrink
from lasertri.factors.store import FactorStore
from lasertri.model.targets import find_linear_layers
from lasertri.ops import block_svd


def make_shrink(model, blocks, *, size=1.0, spread=0.5, stored=True):
    generator, changes, targets = torch.Generator().manual_seed(0), {}, find_linear_layers(model)
    store = FactorStore(model, targets, [blocks], budget=1 << 30)
    for target in targets:
        shape = store.of(target, blocks).sigma.shape
        changes[target] = spread * torch.randn(shape, generator=generator)
    return Shrink(size, changes, store if stored else None).known_by(model)


def scaled(weight, changes):
    """Block by block, by plain SVD."""
    height, longer = divmod(len(weight), len(changes))
    parts = weight.double().split([height + (j < longer) for j in range(len(changes))])
    done = []
    for part, change in zip(parts, changes, strict=True):
        u, s, vh = torch.linalg.svd(part, full_matrices=False)
        done.append((u * (s * (1 + change.double()[: len(s)]).clamp(0, 2))) @ vh)
    return torch.cat(done)


@pytest.mark.parametrize("name", ["gptj", "gpt2", "phi3", "mixtral"])
@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("stored", [True, False])
def test_every_singular_value_is_scaled_from_0_to_2(name, blocks, stored):
    model = make_model(name)
    shrink = make_shrink(model, blocks, spread=1.5, stored=stored)
    assert any((change < -1).any() and (change > 1).any() for change in shrink.changes.values())
    before = {key: value.clone() for key, value in model.state_dict().items()}
    expected = {t: scaled(t.view(t.parameter(model)), change) for t, change in shrink.changes.items()}
    with shrink.beside(model):
        for target, weight in expected.items():
            found = target.view(target.parameter(model)).double()
            assert (found - weight).norm() <= 1e-5 * weight.norm()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    with pytest.raises(KeyboardInterrupt), shrink.applied(model):
        raise KeyboardInterrupt
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    shrink.apply(model)
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {target.name for target in shrink.targets}
    with pytest.raises(LasertriError, match="once"):
        shrink.apply(model)


def test_a_scale_of_0_removes_a_component_and_no_change_keeps_every_bit():
    model = make_model("gptj")
    target, *_ = find_linear_layers(model, "1.mlp.fc_in")
    weight = target.view(target.parameter(model)).clone()
    u, s, vh = torch.linalg.svd(weight.double(), full_matrices=False)
    change = torch.zeros(1, 16)
    change[0, 3] = -1.0
    with Shrink(1.0, {target: change}).applied(model):
        found = target.view(target.parameter(model)).double()
        torch.testing.assert_close(found, weight.double() - s[3] * torch.outer(u[:, 3], vh[3]), rtol=1e-4, atol=1e-5)
        assert torch.linalg.matrix_rank(found, rtol=1e-5) == 15
    with Shrink(1.0, {target: 0 * change}).applied(model):
        assert torch.equal(target.view(target.parameter(model)), weight)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_are_rounded_once(dtype):
    model = make_model("gptj", dtype=dtype)
    shrink = make_shrink(model, 1)
    expected = {t: scaled(t.view(t.parameter(model)), change) for t, change in shrink.changes.items()}
    with shrink.applied(model):
        for target, weight in expected.items():
            rounding = (weight.to(dtype).double() - weight).norm()
            assert (target.view(target.parameter(model)).double() - weight).norm() <= 1.5 * rounding


def test_lengths_multiply_before_they_are_clamped_and_means_are_means():
    model = make_model("gptj")
    shrink = make_shrink(model, 1, spread=1.0)
    twice = shrink.scaled(2.0)
    assert (shrink.size, twice.size) == (1.0, 2.0)
    for target, change in shrink.changes.items():
        assert torch.equal(twice.changes[target], 2 * change)
        torch.testing.assert_close(shrink.averaged([twice]).changes[target], 1.5 * change)
    assert torch.equal(shrink.averaged([]).changes[target], shrink.changes[target])


@pytest.mark.parametrize("blocks", [1, 3])
def test_saved_it_is_one_number_for_every_singular_value(blocks, tmp_path):
    model = make_model("gpt2")
    shrink = make_shrink(model, blocks, size=0.5)
    shrink.save(tmp_path)
    tensors = safetensors.torch.load_file(tmp_path / FACTORS_NAME)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert sum(tensor.numel() for tensor in tensors.values()) == sum(
        block_svd(t.view(t.parameter(model)), blocks=blocks).sigma.numel() for t in shrink.targets
    )
    loaded = Edit.load(tmp_path)
    assert isinstance(loaded, Shrink)
    assert (loaded.size, loaded.targets, loaded.origin) == (0.5, shrink.targets, shrink.origin)
    assert loaded.to_dict() == {"kind": "shrink", "direction": "singular values", "rank": None, "size": 0.5}
    assert all(torch.equal(loaded.changes[target], change) for target, change in shrink.changes.items())
    other = make_model("gpt2")
    loaded.apply(other)
    shrink.apply(model)
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def test_another_base_is_refused(tmp_path):
    make_shrink(make_model("gptj"), 1).save(tmp_path)
    shrink, other = Edit.load(tmp_path), make_model("gptj")
    with torch.no_grad():
        other.transformer.h[1].attn.k_proj.weight[0, 0] += 1e-6
    for wrong, message in (
        (other, r"attn\.k_proj of this model has other values"),
        (make_model("gptj", dtype=torch.bfloat16), "other values or another dtype"),
        (make_model("llama"), "expected a model with transformer"),
    ):
        with pytest.raises(LasertriError, match=message):
            shrink.apply(wrong)


def test_damaged_files_are_refused(tmp_path):
    make_shrink(make_model("gptj"), 3).save(tmp_path)
    factors, config = tmp_path / FACTORS_NAME, tmp_path / CONFIG_NAME
    whole, described = factors.read_bytes(), json.loads(config.read_text())
    factors.write_bytes(whole[:-10])
    with pytest.raises(LasertriError, match="changed after it was written"):
        Edit.load(tmp_path)
    factors.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(LasertriError, match="changed after it was written"):
        Edit.load(tmp_path)
    factors.write_bytes(whole)
    config.write_text(json.dumps(described | {"size": 9.0}))
    with pytest.raises(LasertriError, match="changed after it was written"):
        Edit.load(tmp_path)


@pytest.mark.parametrize("blocks", [1, 3])
def test_those_that_change_most_are_shown_before_and_after(blocks):
    model = make_model("gpt2")
    shrink = make_shrink(model, blocks, spread=1.5, stored=False)
    found = shrink.singular_values(model)
    moved = {target: change.clamp(-1, 1).square().mean() for target, change in shrink.changes.items()}
    assert [one.target for one in found] == [str(target) for target in sorted(moved, key=moved.get, reverse=True)[:3]]
    for one in found:
        target = next(target for target in shrink.targets if str(target) == one.target)
        weight = target.view(target.parameter(model)).detach().double()
        after = scaled(weight, shrink.changes[target])
        assert one.change == pytest.approx(float((after - weight).norm() / weight.norm()), rel=1e-4)
        for name, matrix in (("before", weight), ("after", after)):
            squares = sum(value**2 for value in one.values[name])
            assert blocks * squares == pytest.approx(float(matrix.square().sum()), rel=1e-3)
