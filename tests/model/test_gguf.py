"""Models in GGUF files: read by transformers' dequantisation, adapted as any other, named so that others find them."""

import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lasertri import LasertriError, Sample, adapt, load_model, load_tokenizer

pytest.importorskip("gguf", reason="gguf, which writes and reads GGUF files, is not installed")
from gguf_files import write_gguf
from peft import PeftModel

from lasertri.model import gguf

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def file(tmp_path):
    write_gguf(tmp_path / "tiny.gguf")
    return tmp_path / "tiny.gguf"


def samples():
    """An answer that is nearly always the same is found by any step."""
    return [Sample(f"{chr(97 + i % 26)} {i}", choices=(" yes", " no"), label=int(i % 9 == 0)) for i in range(60)]


def logits(model, tokens=((1, 2, 3, 40, 50, 60),)):
    with torch.no_grad():
        return model(torch.tensor(tokens)).logits


def as_transformers_loads_it(file):
    return AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name)


def test_it_is_loaded_as_transformers_loads_it_and_nearly_as_it_was_made(tmp_path):
    made = write_gguf(tmp_path / "tiny.gguf")
    loaded = load_model(tmp_path / "tiny.gguf", device="cpu")
    assert torch.equal(logits(loaded), logits(as_transformers_loads_it(tmp_path / "tiny.gguf")))
    assert all((a - b).abs().max() < 0.01 for a, b in zip(loaded.parameters(), made.parameters(), strict=True))
    assert load_tokenizer(tmp_path / "tiny.gguf").tokenize("a yes") == ["a", "Ġyes"]


def test_what_is_loaded_is_saved_as_an_ordinary_checkpoint(file, tmp_path):
    result = adapt(file, samples(), accept="best", merge=True, progress=False)
    result.save(tmp_path / "merged")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto")
    with result.edit.applied(result.model):
        assert torch.equal(logits(plain), logits(result.model))
    assert not hasattr(plain.config, "quantization_config")
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").tokenize("a yes") == ["a", "Ġyes"]


def test_an_adapter_names_the_file_and_goes_with_what_transformers_loads_of_it(file, tmp_path):
    result = adapt(load_model(file, device="cpu"), samples(), accept="best", progress=False)
    result.save(tmp_path / "adapted")
    adapter = json.loads((tmp_path / "adapted/adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == str(file)
    plain = PeftModel.from_pretrained(as_transformers_loads_it(file), tmp_path / "adapted")
    before = logits(result.model)
    with result.edit.applied(result.model):
        torch.testing.assert_close(logits(plain), logits(result.model), rtol=0, atol=1e-5)
        assert (logits(result.model) - before).abs().max() > 1e-2
    card = (tmp_path / "adapted/README.md").read_text()
    assert f'from_pretrained("{tmp_path.name}", gguf_file="tiny.gguf", dtype="auto")' in card


def test_a_model_that_others_loaded_of_one_is_refused_for_it_does_not_name_the_file(file):
    for options in ({}, {"edit": "shrink"}):
        with pytest.raises(LasertriError, match=r"quantised by gguf; load it by load_model\('FOLDER/FILE.gguf'\)"):
            adapt(as_transformers_loads_it(file), samples(), tokenizer=load_tokenizer(file), progress=False, **options)


def test_a_file_of_the_hub_is_downloaded_and_named_with_its_commit(file, tmp_path, monkeypatch):
    cache = tmp_path / "cache/models--me--tiny-GGUF"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs/main").write_text(COMMIT)
    (cache / f"snapshots/{COMMIT}").mkdir(parents=True)
    shutil.move(file, cache / f"snapshots/{COMMIT}/tiny.gguf")
    monkeypatch.setattr(gguf, "hf_hub_download", from_cache(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    file.write_text("another of this name")
    loaded = load_model("me/tiny-GGUF/tiny.gguf", device="cpu")
    assert (loaded.config._name_or_path, loaded.config._commit_hash) == ("me/tiny-GGUF/tiny.gguf", COMMIT)
    assert gguf.place_and_file("me/tiny-GGUF/q/tiny.gguf") == ("me/tiny-GGUF", "q/tiny.gguf")
    with pytest.raises(LasertriError, match=r"FILE\.gguf on the hub, got 'me/tiny-GGUF/other\.gguf'"):
        load_model("me/tiny-GGUF/other.gguf")


def test_a_scaling_of_positions_that_transformers_passes_over_is_told(file, caplog):
    load_model(file, device="cpu")
    assert not caplog.messages
    write_gguf(file, scaling=True)
    load_model(file, device="cpu")
    assert "transformers passes over rope_freqs.weight, which scales positions" in caplog.text


def from_cache(folder):
    def download(repository, name, *, revision):
        from huggingface_hub import hf_hub_download

        return hf_hub_download(repository, name, revision=revision, cache_dir=folder, local_files_only=True)

    return download


def test_what_cannot_be_read_is_refused_in_a_sentence(file, tmp_path, monkeypatch):
    write_gguf(tmp_path / "whisper.gguf", architecture="whisper")
    (tmp_path / "cut.gguf").write_bytes(file.read_bytes()[:3000])
    (tmp_path / "text.gguf").write_text("not one")
    for name, said in {
        "whisper.gguf": r"a GGUF file that transformers reads, got .*whisper\.gguf.*architecture whisper",
        "cut.gguf": r"cut\.gguf: its header cannot be used: .*; download it again",
        "text.gguf": r"a GGUF file that transformers reads, got .*text\.gguf",
        "none.gguf": "found no file",
        "TINY.GGUF": r"expected a name that ends in \.gguf; rename it",
        "tiny-00001-of-00001.gguf": "found no file",
        "tiny-00001-of-00003.gguf": "a part of one; join them by llama-gguf-split",
    }.items():
        with pytest.raises(LasertriError, match=said) as caught:
            load_model(tmp_path / name)
        assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(LasertriError, match=r"name a GGUF file in it, such as .*cut\.gguf"):
        load_model(tmp_path)
    monkeypatch.setattr(gguf, "is_gguf_available", lambda: False)
    with pytest.raises(LasertriError, match=r"tiny\.gguf: expected gguf, which reads .*'lasertri\[gguf\]'"):
        load_model(file)
