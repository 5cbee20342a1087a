"""What is saved loads again as what it was, or is refused before the work."""

import json

import pytest
import torch
from marks import slow_but
from safetensors.torch import load_file, save_file
from stepping import encoded
from tiny import CONFIGS, auto_class, make_model
from torch import nn
from transformers import BertModel

from lasertri import LasertriError, adapt, save
from lasertri.edit.verification import require_same_answers
from lasertri.model.checkpoint import MODULE_NAME, rebuilt, reloaded, write_checkpoint


@pytest.mark.parametrize("name", slow_but("gpt2", "llama", "t5", "roberta", of=CONFIGS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_is_built_again_with_its_own_weights_and_answers(name, dtype):
    model = make_model(name, dtype=dtype)
    again = rebuilt(model, None)
    assert again is not model
    inputs = {"input_ids": torch.arange(4, 16).reshape(2, 6)}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = inputs["input_ids"]
    with torch.no_grad():
        assert torch.equal(again(**inputs).logits, model(**inputs).logits)
    mine, theirs = model.state_dict(), again.state_dict()
    assert all(theirs[key].data_ptr() == tensor.data_ptr() for key, tensor in mine.items())


def with_a_wider_head(model):
    model.lm_head = nn.Linear(16, 40, bias=False)


def with_one_weight_twice(model):
    model.model.layers[2].mlp.up_proj.weight = model.model.layers[0].mlp.up_proj.weight


def with_a_tied_head(model):
    model.lm_head.weight = model.model.embed_tokens.weight


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (with_a_wider_head, r"lm_head\.weight is \[40, 16\], and by the configuration \[30, 16\]"),
        (
            with_one_weight_twice,
            r"layers\.0\.mlp\.up_proj\.weight and .*layers\.2\.mlp\.up_proj\.weight are one weight",
        ),
        (with_a_tied_head, r"lm_head\.weight and model\.embed_tokens\.weight are one weight"),
    ],
)
@pytest.mark.parametrize("whole", [False, True])
def test_a_model_that_its_configuration_does_not_describe_is_refused(change, said, whole):
    model = make_model("llama")
    change(model)
    with pytest.raises(LasertriError, match=said if not whole else "one weight|memory of its own|by the configuration"):
        rebuilt(model, None, whole=whole)


def test_tied_weights_that_are_not_contiguous_are_found_by_saving_them(tokenizer, samples, monkeypatch):
    model = make_model("gpt2")
    weight = nn.Parameter(model.lm_head.weight.detach().t().contiguous().t())
    model.transformer.wte.weight = model.lm_head.weight = weight
    monkeypatch.setattr("lasertri.search.preflight.Comparison", None)  # it comes later
    with pytest.raises(LasertriError, match="expected a GPT2LMHeadModel that can be saved, but: view size"):
        adapt(model, samples, tokenizer=tokenizer, edit="shrink", progress=False)


def test_weights_that_would_load_in_another_dtype_are_refused():
    model = make_model("t5", dtype=torch.bfloat16)  # whose layers convert what they are given
    model.encoder.final_layer_norm.float()
    with pytest.raises(
        LasertriError, match=r"torch\.bfloat16 for encoder\.final_layer_norm\.weight, got torch\.float32"
    ):
        rebuilt(model, None)
    rebuilt(model, None, whole=False)


def test_an_embedding_that_is_also_the_head_is_not_written_before_the_work(monkeypatch):
    model = make_model("gpt2", tie_word_embeddings=True)
    assert model.lm_head.weight is model.transformer.wte.weight
    written, write = [], model.save_pretrained
    monkeypatch.setattr(
        model,
        "save_pretrained",
        lambda folder, state_dict: (written.extend(state_dict), write(folder, state_dict=state_dict)),
    )
    rebuilt(model, None)
    assert len(written) == 1
    assert not {"lm_head.weight", "transformer.wte.weight"} & set(written)


def test_settings_of_generation_that_cannot_be_saved_are_found_before():
    model = make_model("llama")
    model.generation_config.temperature = 0.5
    with pytest.raises(LasertriError, match=r"can be saved: `temperature`.*; correct generation_config\.json"):
        rebuilt(model, None)
    rebuilt(model, None, whole=False)


def test_buffers_and_classes_of_ones_own_are_seen_in_the_answers():
    """They are no part of a checkpoint."""
    model = make_model("llama")
    batch = encoded(model, "llama").batches()[0]
    require_same_answers(rebuilt(model, None), model, batch)
    model.model.rotary_emb.inv_freq *= 3
    with pytest.raises(LasertriError, match="answers alike when it is loaded again, but it is off by"):
        require_same_answers(rebuilt(model, None), model, batch)

    class Louder(type(model)):
        def forward(self, *arguments, **options):
            output = super().forward(*arguments, **options)
            output.logits = 2 * output.logits
            return output

    louder = Louder(model.config).eval()
    louder.load_state_dict(make_model("llama").state_dict())
    with pytest.raises(LasertriError, match="answers alike"):
        require_same_answers(rebuilt(louder, None), louder, batch)


@pytest.mark.parametrize("name", ["gpt2", "t5", "mixtral"])
def test_a_checkpoint_is_read_back_bit_for_bit(name, tmp_path):
    model = make_model(name)
    write_checkpoint(model, tmp_path, None)
    again = reloaded(model, tmp_path)
    assert type(again) is type(model)
    weights = load_file(tmp_path / "model.safetensors")
    key = min(weights, key=lambda k: weights[k].numel())
    weights[key].view(-1)[0] += 1e-3
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        LasertriError, match="expected the checkpoint to load as what was saved, but .* has other values"
    ):
        reloaded(model, tmp_path)


def test_nothing_is_left_of_a_checkpoint_that_does_not_load_as_what_was_saved(tmp_path, monkeypatch):
    model = make_model("llama")
    whole = type(model).save_pretrained

    def forgetful(self, folder, **options):
        whole(self, folder, **options)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))

    monkeypatch.setattr(type(model), "save_pretrained", forgetful)
    with pytest.raises(LasertriError, match="has other values, or another shape or dtype"):
        save(model, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_module_of_ones_own_is_read_back_too(tmp_path):
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    write_checkpoint(model, tmp_path, None)
    assert reloaded(model, tmp_path) is model
    assert rebuilt(model, None) is model
    stored = load_file(tmp_path / MODULE_NAME)
    save_file({key: value + 1 for key, value in stored.items()}, tmp_path / MODULE_NAME, {"1.weight": "0.weight"})
    with pytest.raises(LasertriError, match="has other values"):
        reloaded(model, tmp_path)


def test_what_runs_in_memory_and_is_not_saved_runs_again(tmp_path):
    make_model("llama").save_pretrained(tmp_path / "base")
    model = auto_class("llama").from_pretrained(tmp_path / "base", attn_implementation="eager").eval()
    write_checkpoint(model, tmp_path, None)
    for again in (rebuilt(model, None), reloaded(model, tmp_path)):
        assert again.config._attn_implementation == "eager"


def test_what_a_configuration_does_not_say_must_not_matter():
    """A pooler that nobody asked for does not; a layer that was taken away does."""
    bert = BertModel(make_model("bert").config, add_pooling_layer=False).eval()
    ids = torch.arange(4, 16).reshape(2, 6)
    with torch.no_grad():
        assert torch.equal(rebuilt(bert, None)(ids).last_hidden_state, bert(ids).last_hidden_state)
    model = make_model("llama")
    batch = encoded(model, "llama").batches()[0]
    model.extra = nn.Linear(3, 3)
    require_same_answers(rebuilt(model, None), model, batch)
    del model.extra
    model.model.layers = model.model.layers[:2]
    with pytest.raises(
        LasertriError,
        match=r"off by .*: its model\.layers\.2\.input_layernorm\.weight is not what its configuration says",
    ):
        require_same_answers(rebuilt(model, None), model, batch)
