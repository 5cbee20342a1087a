"""What SECURITY.md says, claim by claim."""

import ast
import json
import os
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from tiny import make_samples

import lasertri
from lasertri import Edit, LasertriError, adapt, as_samples, load_model, load_tokenizer, save
from lasertri.data.chat import chat_text
from lasertri.edit.edit import CONFIG_NAME

PACKAGE = Path(lasertri.__file__).parent
MODULES = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "subprocess", "multiprocessing", "runpy"}
CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "torch.load", "numpy.load", "np.load"}
SMALL = {"edit": "truncate", "accept": "best", "blocks": (1,), "ratios": (0.5,), "count": 1, "progress": False}


@pytest.fixture
def code(tmp_path):
    """Python that is not to run."""
    path = tmp_path / "it ran"
    yield f"open({str(path)!r}, 'w')"
    assert not path.exists()


class Malicious:
    def __init__(self, code):
        self.code = code

    def __reduce__(self):
        return exec, (self.code,)


def test_a_pickle_is_read_as_numbers_or_not_at_all(folder, code):
    """Of a checkpoint before safetensors."""
    state = load_model(folder).state_dict()
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    load_model(folder)
    torch.save(state | {"transformer.wte.weight": Malicious(code)}, folder / "pytorch_model.bin")
    with pytest.raises(LasertriError, match="the checkpoint cannot be used: "):
        load_model(folder)


@pytest.mark.parametrize("known", [True, False])
def test_code_beside_a_model_is_not_run(folder, code, known):
    """Of an architecture that transformers has, its own is taken; any other is refused."""
    for name in ("modeling_own", "configuration_own", "tokenization_own"):
        (folder / f"{name}.py").write_text(code)
    own = {"AutoConfig": "configuration_own.Own", "AutoModelForCausalLM": "modeling_own.Own"}
    own |= {"AutoTokenizer": ["tokenization_own.Own", "tokenization_own.Own"]}
    for name, kind in (("config.json", "model_type"), ("tokenizer_config.json", "tokenizer_class")):
        content = json.loads((folder / name).read_text()) | {"auto_map": own} | ({} if known else {kind: "own"})
        (folder / name).write_text(json.dumps(content))
    if known:
        assert type(load_model(folder)).__name__ == "GPTJForCausalLM"
        load_tokenizer(folder)
    else:
        for load in (load_model, load_tokenizer):
            with pytest.raises(LasertriError):
                load(folder)


@pytest.mark.parametrize(
    "template",
    ["cycler.__init__.__globals__.os", "''.__class__.__mro__", "self.__init__.__globals__.__builtins__.exec(messages)"],
)
def test_a_chat_template_reaches_nothing_but_the_conversation(tokenizer, monkeypatch, template):
    monkeypatch.setattr(tokenizer, "chat_template", f"{{{{ {template} }}}}{{{{ messages }}}}")
    with pytest.raises(LasertriError, match="expected a chat template that takes a user's message: .*unsafe|undefined"):
        chat_text(tokenizer, [{"role": "user", "content": "a"}])


def test_an_edit_is_of_one_of_three_kinds_and_as_it_was_written(model, tokenizer, tmp_path):
    adapt(model, make_samples(48), tokenizer=tokenizer, **SMALL).edit.save(tmp_path)
    config = json.loads((tmp_path / CONFIG_NAME).read_text())
    (tmp_path / CONFIG_NAME).write_text(json.dumps(config | {"kind": "os.system"}))
    with pytest.raises(LasertriError, match="expected a kind of edit among"):
        Edit.load(tmp_path)
    (tmp_path / CONFIG_NAME).write_text(json.dumps(config | {"rho": 0.9}))
    with pytest.raises(LasertriError, match="was changed after it was written"):
        Edit.load(tmp_path)


def test_a_row_is_text_and_never_a_template():
    rows = [{"prompt": "{label.__class__} {{ 7 * 7 }}", "choices": ["{prompt}", "b"], "label": 0}]
    [sample] = as_samples(rows)
    assert (sample.prompt, sample.choices) == ("{label.__class__} {{ 7 * 7 }}", ("{prompt}", "b"))


def test_the_package_reads_no_pickle_and_starts_no_program():
    used = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
                used += [(path, name) for name in names if name.split(".")[0] in MODULES]
            if isinstance(node, ast.Call):
                used += [(path, ast.unparse(node))] * (ast.unparse(node.func) in CALLS)
            if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
                used += [(path, ast.unparse(node))] * (ast.unparse(node.value) != "False")
    assert used == []


class Watch:
    """What is done from here on: where it writes, as far as Python does, and to whom it connects."""

    def __init__(self):
        self.active, self.written, self.connections = False, set(), []
        sys.addaudithook(self)

    def __call__(self, event, arguments):
        if not self.active:
            return
        if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
            self.connections.append(arguments)
        elif event in ("os.mkdir", "os.rename") or (event == "open" and self._writes(*arguments)):
            self.written |= {os.path.abspath(os.fsdecode(path)) for path in arguments[: 1 + (event == "os.rename")]}

    @staticmethod
    def _writes(path, mode, flags):
        new = set(mode) & set("wax+") if mode else flags & (os.O_WRONLY | os.O_RDWR)
        return new and not isinstance(path, int) and path != os.devnull


def test_files_are_written_to_the_output_the_cache_and_temporary_folders_alone(
    folder, tokenizer, tmp_path, monkeypatch
):
    """And with model and samples on disk nothing is sent anywhere, though the hub may be asked."""
    places = {name: tmp_path / name for name in ("results", "cache", "temporary", "cwd")}
    for place in places.values():
        place.mkdir()
    monkeypatch.setenv("LASERTRI_CACHE", str(places["cache"]))
    monkeypatch.setattr(tempfile, "tempdir", str(places["temporary"]))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.chdir(places["cwd"])
    rows = [{"prompt": s.prompt, "choices": s.choices, "label": s.label} for s in make_samples(48)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    before = {path: path.read_bytes() for path in folder.iterdir()}
    watch = Watch()
    watch.active = True
    result = adapt(folder, tmp_path / "rows.jsonl", **SMALL)
    result.save(places["results"] / "out")
    save(result.model, places["results"] / "again")
    watch.active = False
    assert watch.connections == []
    own = (f"{places[name]}/" for name in ("results", "cache", "temporary"))
    allowed = (*own, os.path.expanduser("~/.cache/matplotlib"), os.path.expanduser("~/.config/matplotlib"))
    assert [path for path in sorted(watch.written) if not f"{path}/".startswith(allowed)] == []
    assert {path.name for path in places["results"].iterdir()} == {"out", "again"}
    assert list(places["cache"].iterdir())
    assert not [*places["cwd"].iterdir(), *places["temporary"].glob("lasertri-*")]
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
