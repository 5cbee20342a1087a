"""The site is built without a warning: every link, anchor and documented name is there, and nothing from elsewhere."""

import re
import subprocess
import sys

import pytest
from pages import ROOT


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path):
    pytest.importorskip("material", reason="pip install 'lasertri[docs]'")
    pytest.importorskip("mkdocstrings", reason="pip install 'lasertri[docs]'")
    # without --quiet, under which no warning is counted
    built = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(built, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pages = [path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.html")]
    loaded = r'<(?:script|img|iframe)[^>]*\ssrc="(https?:)?//|<link[^>]*stylesheet[^>]*href="(https?:)?//'
    assert [page for page in pages if re.search(loaded, page)] == []
    assert any("<td><code>max_kl</code></td>" in page for page in pages)
