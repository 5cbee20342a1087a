"""Folders that are damaged many times."""

import atexit
import shutil
import tempfile
from pathlib import Path


def kept_folder() -> Path:
    """A new one, which is there until the process ends."""
    folder = tempfile.mkdtemp(prefix="lasertri-fuzz-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)
