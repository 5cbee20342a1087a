"""An edit is what its candidate says, survives saving, and refuses any other base."""

import json

import pytest
import safetensors.torch
import torch

from lasertri import Edit, LasertriError
from lasertri.edit.candidate import Candidate
from lasertri.edit.edit import CONFIG_NAME, FACTORS_NAME, _checksum
from lasertri.edit.truncation import Truncation
from lasertri.factors.store import FactorStore
from lasertri.model.targets import find_targets


def make_edit(model, *, role="fc_in", blocks=3, ratio=0.4, **options):
    target = [t for t in find_targets(model) if (t.layer, t.role) == (1, role)][-1]
    factors = FactorStore(model, [target], [blocks], budget=1 << 30)
    return Truncation.build(Candidate(target, blocks, ratio, **options), model, factors)


def truncated(weight, blocks, ratio):
    """Block by block, by plain SVD."""
    height, longer = divmod(weight.shape[0], blocks)
    parts = weight.double().split([height + (j < longer) for j in range(blocks)])
    done = []
    for part in parts:
        u, s, vh = torch.linalg.svd(part, full_matrices=False)
        k = int(min(part.shape) * ratio)
        done.append((u[:, :k] * s[:k]) @ vh[:k])
    return torch.cat(done)


@pytest.mark.parametrize("architecture", ["gptj", "gpt2", "llama", "phi3", "mixtral"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("role", "blocks", "ratio"), [("fc_in", 1, 0.3), ("fc_out", 3, 0.4), ("fc_in", 8, 0.0)])
def test_the_applied_weight_is_the_exact_truncation_rounded_once(model_of, architecture, dtype, role, blocks, ratio):
    model = model_of(architecture, dtype=dtype)
    edit = make_edit(model, role=role, blocks=blocks, ratio=ratio)
    target = edit.candidate.target
    expected = truncated(target.view(target.parameter(model)), blocks, ratio)
    edit.apply(model)
    applied = target.view(target.parameter(model)).double()
    rounding = (expected.to(dtype).double() - expected).norm()
    assert (applied - expected).norm() <= 2.5 * rounding + 1e-12  # an FP32 weight's factors are rounded like itself


def test_applied_within_a_context_and_reverted_bit_for_bit(model):
    edit, before = make_edit(model), {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(KeyboardInterrupt), edit.applied(model):
        name = edit.candidate.target.name
        assert [k for k, v in model.state_dict().items() if not torch.equal(v, before[k])] == [name]
        with edit.applied(model):  # it is there already: nothing to do, nothing to undo
            pass
        assert not torch.equal(model.state_dict()[name], before[name])
        raise KeyboardInterrupt
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("architecture", ["gpt2", "phi3", "mixtral", "qwen2_moe", "qwen3_moe"])
def test_an_edit_of_a_part_leaves_every_other_byte(model_of, tmp_path, architecture, dtype):
    """The rest of its parameter, routers and tied weights among them."""
    model = model_of(architecture, dtype=dtype)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    parts = [t for t in find_targets(model, ".") if t.layer == 2 and (t.rows or t.expert is not None)]
    assert parts
    for target in parts:
        factors = FactorStore(model, [target], [3], budget=1 << 30)
        Truncation.build(Candidate(target, 3, 0.4), model, factors).save(tmp_path)
        edit = Edit.load(tmp_path)
        assert edit.candidate.target == target
        with edit.applied(model):
            now = model.state_dict()
            assert [name for name, value in now.items() if not torch.equal(value, before[name])] == [target.name]
            outside = torch.ones_like(now[target.name])
            target.view(outside).zero_()
            assert outside.sum() == outside.numel() - edit.weight.numel()
            assert torch.equal(now[target.name] * outside, before[target.name] * outside)
            assert torch.equal(target.view(now[target.name]), edit.weight)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        edit.apply(model)
        with pytest.raises(LasertriError, match="once"):
            edit.apply(model)
        model.load_state_dict(before)


def test_an_edit_of_an_expert_that_is_not_there_is_refused(model_of):
    edit = make_edit(model_of("mixtral"))
    assert edit.candidate.target.expert == 2
    with pytest.raises(LasertriError, match=r"expected a model with .*experts\.gate_up_proj\.2\.fc_in"):
        edit.apply(model_of("mixtral", num_local_experts=2))


def test_edits_of_whole_parameters_from_before_parts_were_known_still_load(model, tmp_path):
    make_edit(model).save(tmp_path)
    config = json.loads((tmp_path / CONFIG_NAME).read_text())
    config.pop("sha256")
    assert [config["target"].pop(name) for name in ("expert", "rows")] == [None, None]
    config["sha256"] = _checksum(config, tmp_path / FACTORS_NAME)
    (tmp_path / CONFIG_NAME).write_text(json.dumps(config))
    Edit.load(tmp_path).apply(model)


def test_a_saved_edit_gives_the_same_weight(model, tmp_path):
    edit = make_edit(model)
    edit.save(tmp_path)
    loaded = Edit.load(tmp_path)
    assert loaded.candidate == edit.candidate
    assert torch.equal(loaded.weight, edit.weight)
    loaded.apply(model)


def test_another_base_is_refused(model_of, tmp_path):
    make_edit(model_of("gptj")).save(tmp_path)
    edit, other = Edit.load(tmp_path), model_of("gptj")
    with torch.no_grad():
        edit.candidate.target.parameter(other)[0, 0] += 1e-6
    with pytest.raises(LasertriError, match="of this model has other values"):
        edit.apply(other)
    with pytest.raises(LasertriError, match="load the base model with that dtype"):
        edit.apply(model_of("gptj").bfloat16())
    with pytest.raises(LasertriError, match=r"expected a model with transformer\.h\.1\.mlp\.fc_in"):
        edit.apply(model_of("llama"))
    for wrong in (model_of("llama"), model_of("gptj").bfloat16(), other):
        with pytest.raises(LasertriError, match="expected"), edit.applied(wrong):
            pass


def test_an_edit_cannot_be_applied_twice(model):
    edit = make_edit(model)
    edit.apply(model)
    with pytest.raises(LasertriError, match="once"):
        edit.apply(model)


def test_damaged_files_are_refused(model, tmp_path):
    make_edit(model).save(tmp_path)
    factors, config = tmp_path / FACTORS_NAME, tmp_path / CONFIG_NAME
    whole, described = factors.read_bytes(), json.loads(config.read_text())

    factors.write_bytes(whole[:-10])
    with pytest.raises(LasertriError, match="changed after it was written"):
        Edit.load(tmp_path)
    factors.unlink()
    with pytest.raises(LasertriError, match=f"{FACTORS_NAME}: expected an edit's tensors, but .* No such file"):
        Edit.load(tmp_path)
    factors.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(LasertriError, match="changed after it was written"):
        Edit.load(tmp_path)
    factors.write_bytes(whole)
    for change in ({"blocks": 2}, {"ratio": 0.5}, {"weight_dtype": "bfloat16"}):
        config.write_text(json.dumps(described | change))
        with pytest.raises(LasertriError, match="changed after it was written"):
            Edit.load(tmp_path)
    for broken in ("", "[]", '{"a": 1, "a": 2}', "[" * 9999):
        config.write_text(broken)
        with pytest.raises(LasertriError, match=CONFIG_NAME):
            Edit.load(tmp_path)
    with pytest.raises(LasertriError, match="found no lasertri_config.json; where no edit was accepted there is none"):
        Edit.load(tmp_path / "absent")


def test_rank_zero_blocks_are_saved_too(model, tmp_path):
    make_edit(model, blocks=8, ratio=0.0).save(tmp_path)
    assert not Edit.load(tmp_path).weight.any()
    assert len(safetensors.torch.load_file(tmp_path / FACTORS_NAME)) == 16


@pytest.mark.parametrize("options", [{}, {"clustered": True}])
def test_its_singular_values_are_the_weights_up_to_the_rank_of_every_block(model, options):
    edit = make_edit(model, **options)
    target = edit.candidate.target
    weight = target.view(target.parameter(model)).double()
    [found] = edit.singular_values(model)
    blocks = weight.split([len(left) for left in edit.left]) if edit.order is None else [
        weight[rows] for rows in edit.order.split([len(left) for left in edit.left])
    ]  # fmt: skip
    for name, ranks in (("before", [99] * 3), ("after", edit.candidate.ranks)):
        squares = torch.zeros(min(max(map(len, blocks)), weight.shape[1]), dtype=torch.float64)
        for block, rank in zip(blocks, ranks, strict=True):
            values = torch.linalg.svdvals(block)[:rank]
            squares[: len(values)] += values.square()
        expected = (squares / 3).sqrt()[: len(found.places)]
        torch.testing.assert_close(torch.tensor(found.values[name]).double(), expected, rtol=1e-3, atol=1e-6)
    assert found.change == pytest.approx(float((weight - edit.weight).norm() / weight.norm()), rel=1e-4)


def test_of_an_edit_that_was_read_they_are_unknown(model, tmp_path):
    make_edit(model).save(tmp_path)
    assert Edit.load(tmp_path).singular_values(model) == []
    assert make_edit(model, blocks=1, compat=True).singular_values(model) == []
