"""An adapter's singular values: moved by their own gradients, and still an adapter of its rank that peft loads."""

import copy

import peft
import pytest
import torch
from safetensors.torch import load_file
from tiny import make_model, make_samples

from lasertri import LasertriError, load_model, refine
from lasertri.edit.edit import Edit
from lasertri.edit.refinement import Refinement, adapter_of_others, spectra_of
from lasertri.language.samples import EncodedSamples
from lasertri.model.preserve import preserved
from lasertri.search.shrink_search import slope_of_adapter
from lasertri.search.tokens import Room, gather_tokens

INPUTS = torch.arange(12).reshape(2, 6)
MODULES = {"llama": ["q_proj", "down_proj"], "gpt2": ["c_attn", "c_proj"]}


def write_adapter(model, folder, *, std=0.3, **options):
    """An adapter with weights of its own, as peft writes one."""
    config = {"r": 3, "lora_alpha": 5, "fan_in_fan_out": "transformer" in dict(model.named_children())} | options
    adapted = peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(**config))
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=std)
    adapted.save_pretrained(folder)
    return folder


@torch.no_grad()
def logits(model):
    return model(input_ids=INPUTS).logits


def as_peft_gives_it(model, folder):
    return logits(peft.PeftModel.from_pretrained(copy.deepcopy(model), folder).eval())


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize(
    "options", [{}, {"use_rslora": True}, {"rank_pattern": {"down_proj": 2, "c_proj": 2}}], ids=["", "rslora", "ranks"]
)
def test_an_adapter_is_read_as_peft_reads_it(name, options, tmp_path):
    model = make_model(name)
    write_adapter(model, tmp_path, target_modules=MODULES[name], **options)
    with adapter_of_others(model, tmp_path).beside(model):
        ours = logits(model)
    torch.testing.assert_close(ours, as_peft_gives_it(model, tmp_path), rtol=0, atol=2e-5)
    assert not torch.allclose(ours, logits(model), atol=0.01)


def test_what_moves_is_the_singular_values_alone(tmp_path):
    model = make_model("llama")
    given = adapter_of_others(model, write_adapter(model, tmp_path / "given", target_modules=MODULES["llama"]))
    changes = {target: torch.tensor([-0.5, -3.0, 4.0]) for target in given.targets}
    edit = Refinement(1.0, changes, spectra=spectra_of(given))
    whole = edit.adapter(model)
    shown = {one.target: one.values for one in edit.singular_values(model)}
    for target, (left, right) in given.factors.items():
        u, sigma, vh = torch.linalg.svd(left.double() @ right.double(), full_matrices=False)
        expected = (u[:, :3] * sigma[:3] * torch.tensor([0.5, 0.0, 2.0])) @ vh[:3]
        if str(target) in shown:
            assert shown[str(target)]["before"] == pytest.approx(sigma[:3].tolist(), rel=1e-3)
            assert shown[str(target)]["after"] == pytest.approx([float(sigma[0]) / 2, 0, 2 * float(sigma[2])], rel=1e-3)
        left, right = whole.factors[target]
        torch.testing.assert_close(left.double() @ right.double(), expected, rtol=0, atol=1e-6)
    with given.beside(model), edit.beside(model):
        beside = logits(model)
    whole.save(tmp_path / "out")
    torch.testing.assert_close(beside, as_peft_gives_it(model, tmp_path / "out"), rtol=0, atol=2e-5)
    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert {tensor.shape[0] for name, tensor in tensors.items() if "lora_A" in name} == {3}
    assert Edit.load(tmp_path / "out").to_dict() == edit.to_dict()


def test_the_slopes_are_those_of_the_loss(tokenizer, tmp_path):
    model = make_model("llama", dtype=torch.float64)
    given = adapter_of_others(model, write_adapter(model, tmp_path, target_modules=["down_proj"]))
    spectra = spectra_of(given)
    samples = EncodedSamples(make_samples(6), model=model, tokenizer=tokenizer)
    target, step = given.targets[1], 1e-4

    def loss(factor):
        changes = {target: torch.tensor([0.0, factor, 0.0])}
        with given.beside(model), Refinement(1.0, changes, spectra=spectra).beside(model), torch.no_grad():
            return sum(float(batch.loss(model)) for batch in samples.loss_batches(range(6)))

    with preserved(model), given.beside(model):
        tokens = gather_tokens(model, given.targets, samples.loss_batches(range(6)), Room())
    found = slope_of_adapter(spectra, target, tokens[target])
    assert float(found[1]) == pytest.approx((loss(step) - loss(-step)) / (2 * step), rel=1e-2)


def test_a_refined_adapter_is_measured_against_the_adapter_and_saved_as_one(folder, model, tokenizer, tmp_path):
    loaded = load_model(folder)
    given = write_adapter(loaded, tmp_path / "given", target_modules=["fc_out", "v_proj"])
    before = copy.deepcopy(loaded.state_dict())
    found = refine(given, make_samples(48), model=loaded, accept="best", progress=False)
    assert all(tensor.equal(before[name]) for name, tensor in loaded.state_dict().items())
    assert found.edit.to_dict()["kind"] == "refine"
    assert found.calibration.edited.log_loss != found.calibration.baseline.log_loss
    found.save(tmp_path / "out")
    with found.edit.beside(loaded):
        expected = logits(loaded)
    torch.testing.assert_close(as_peft_gives_it(loaded, tmp_path / "out"), expected, rtol=0, atol=2e-5)
    assert (
        "singular values of an adapter of rank 3 in 6 linear layers moved"
        in (tmp_path / "out" / "README.md").read_text()
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"use_dora": True}, "peft adds more than its factors"),
        ({"std": 0.0}, "one that is 0 everywhere"),
        ({"target_modules": ["wte"]}, "a LoRA adapter of linear layers alone"),
    ],
)
def test_what_is_no_plain_adapter_is_refused(model, tokenizer, tmp_path, options, said):
    write_adapter(model, tmp_path, **{"target_modules": ["fc_out"]} | options)
    with pytest.raises(LasertriError, match=said):
        refine(tmp_path, make_samples(48), model=model, tokenizer=tokenizer, progress=False)


def test_an_adapter_of_another_model_is_refused(model, tokenizer, tmp_path):
    write_adapter(make_model("gptj", n_embd=32), tmp_path, target_modules=["fc_out"])
    with pytest.raises(LasertriError, match="expected a LoRA adapter of this model, but"):
        refine(tmp_path, make_samples(48), model=model, tokenizer=tokenizer, progress=False)
    with pytest.raises(LasertriError, match="expected no targets for a refinement"):
        refine(tmp_path, make_samples(48), model=model, tokenizer=tokenizer, targets="mlp")
    with pytest.raises(LasertriError, match="found no adapter_config.json"):
        refine(tmp_path / "none", make_samples(48), model=model, tokenizer=tokenizer, progress=False)
