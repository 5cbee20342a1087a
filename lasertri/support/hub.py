"""The Hugging Face hub beyond the loading of models: the licence of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import HfApi, metadata_load, try_to_load_from_cache
from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of the HTTP library that its version has

SECONDS = 4.0  # that the hub has to answer a question whose answer can be done without
LICENCE = ("license", "license_name", "license_link")


def licence(name: str, revision: str | None = None) -> dict[str, str]:
    """What the card of a folder, or of a model on the hub, says of its licence; nothing where that cannot be read."""
    path = (
        Path(name) / "README.md" if Path(name).is_dir() else try_to_load_from_cache(name, "README.md", None, revision)
    )
    said: Any = None
    if isinstance(path, str | Path) and Path(path).is_file():
        try:
            said = metadata_load(path)
        except (OSError, ValueError, yaml.YAMLError):
            return {}
    elif not Path(name).is_dir():
        try:
            card = HfApi().model_info(name, revision=revision, timeout=SECONDS).card_data
            said = None if card is None else card.to_dict()
        except (HTTPError, OSError):  # offline, too
            return {}
    return {field: said[field] for field in LICENCE if isinstance(said.get(field), str)} if said else {}
