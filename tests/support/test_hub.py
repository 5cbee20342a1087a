"""What is asked of the hub, and what is made of an answer that does not come."""

from types import SimpleNamespace

import pytest
from huggingface_hub import HfApi, ModelCardData

from lasertri.support.hub import licence


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("---\nlicense: other\nlicense_name: mine\ntags: [a]\n---\n", {"license": "other", "license_name": "mine"}),
        ("---\nlicense: [mit]\n---\n", {}),
        ("---\n: - [\n---\n", {}),
        ("Nothing.", {}),
        (None, {}),
    ],
)
def test_a_folders_licence(tmp_path, text, found):
    if text is not None:
        (tmp_path / "README.md").write_text(text)
    assert licence(str(tmp_path)) == found


def test_a_licence_on_the_hub(monkeypatch):
    asked = SimpleNamespace(card_data=ModelCardData(license="mit"))
    monkeypatch.setattr(HfApi, "model_info", lambda *_, **__: asked)
    assert licence("me/base", "0" * 40) == {"license": "mit"}

    def silent(*_, **__):
        raise ConnectionError

    monkeypatch.setattr(HfApi, "model_info", silent)
    assert licence("me/base", "0" * 40) == {}
