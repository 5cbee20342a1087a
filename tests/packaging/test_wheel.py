"""The built wheel is whole: it works away from the checkout, demo included."""

import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):  # a copy, so that no stale build/ is packed
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "lasertri", source / "lasertri")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, source]
    subprocess.run(build, check=True, capture_output=True)
    return next(out.glob("*.whl"))


@pytest.mark.slow
def test_the_installed_wheel_loads_the_demo(wheel, tmp_path):
    # the dependencies of this environment, lasertri itself from the wheel alone
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", wheel], check=True)
    code = (
        "import sys; sys.path += {site!r}; "
        "import lasertri, pathlib; "
        "from lasertri.demo import MODEL_DIR; from lasertri.model.loading import load_model, load_tokenizer; "
        "from lasertri.data.lm_eval import LASER_TASKS; "
        "assert len(list(LASER_TASKS.glob('*.yaml'))) == 8 and len(list(LASER_TASKS.glob('*_yaml'))) == 2; "
        "assert (LASER_TASKS / 'laser.py').exists(); "
        "from lasertri.data.neutral import neutral_text; neutral_text(); "
        "from lasertri.demo.recall import samples; from lasertri.result.report import render; "
        "assert (pathlib.Path(lasertri.__file__).parent / 'result' / 'card.md.j2').exists(); "
        "from lasertri.reproduce.published import figures; figures(3, 'gptj'); "
        "assert pathlib.Path({venv!r}) in pathlib.Path(lasertri.__file__).parents, lasertri.__file__; "
        "load_model(MODEL_DIR); load_tokenizer(MODEL_DIR); print(len(samples(20, seed=0)))"
    ).format(site=[p for p in sys.path if p.endswith("site-packages")], venv=str(tmp_path / "venv"))
    done = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.stdout == "20\n", done.stderr
    assert (tmp_path / "venv" / "bin" / "lasertri").exists()
