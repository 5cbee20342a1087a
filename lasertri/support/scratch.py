"""A folder for files that only this process reads."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from lasertri.errors import LasertriError
from lasertri.support.shown import reason

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A temporary folder, which is gone afterwards.

    Raises:
        LasertriError: there is no place for one, or what is written there within cannot be.
    """
    made = False
    try:
        with tempfile.TemporaryDirectory(prefix="lasertri-") as folder:
            made = True
            yield Path(folder)
    except (OSError, SafetensorError) as error:
        if made and isinstance(error, OSError) and error.errno not in FULL:  # of something else within
            raise
        raise LasertriError(
            f"expected a folder for temporary files that can be written: {reason(error)}; name one with TMPDIR"
        ) from error
