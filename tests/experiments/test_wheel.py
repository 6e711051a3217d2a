"""A wheel built from the checkout, installed where nothing of the checkout can be imported."""

import json
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
from processes import ROOT, environment
from small_recipe import SMALL

pytestmark = pytest.mark.slow
SETTINGS = {name: value for name, value in environment().items() if name != "PYTHONPATH"}
PIP = [sys.executable, "-m", "pip", "--quiet"]


def run(*command: str | Path, cwd: Path) -> None:
    done = subprocess.run(command, cwd=cwd, env=SETTINGS, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def build_wheel(source: Path, folder: Path) -> Path:
    run(*PIP, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source, cwd=folder)
    return next(folder.glob("*.whl"))


def names(wheel: Path) -> set[str]:
    return set(zipfile.ZipFile(wheel).namelist())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(ROOT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel: Path) -> Path:
    """Returns the bin folder of an environment with the wheel, which finds requirements in the tests' environment."""
    environment = wheel.with_name("environment")
    run(sys.executable, "-m", "venv", "--without-pip", environment, cwd=wheel.parent)
    run(*PIP, "--python", environment / "bin/python", "install", "--no-deps", "--no-index", wheel, cwd=wheel.parent)
    # Python does not read the .pth files of a folder that a .pth file names, such as the one that finds the checkout.
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "needed.pth").write_text(sysconfig.get_path("purelib"))
    return environment / "bin"


def test_wheel_installs_one_package(wheel, installed):
    assert {name.split("/")[0].partition("-")[0] for name in names(wheel)} == {"stgt_jax"}
    assert {"stgt_jax/py.typed", "stgt_jax/experiments/launch/tpu_pod.sh"} <= names(wheel)
    code = "from importlib.util import find_spec as find; assert not find('experiments') and not find('data_pipeline')"
    run(installed / "python", "-c", code, cwd=wheel.parent)


def test_trained_weights_come_with_the_wheel(installed, tmp_path):
    code = "import stgt_jax as stgt; assert stgt.load('moving_shapes').encode_text('a circle').shape == (1, 64)"
    run(installed / "python", "-c", code, cwd=tmp_path)


def test_demo_runs_from_the_wheel(installed, tmp_path):
    small = [option for option in SMALL if not option.startswith("--num_workers")]
    demo = ["demo", "--workdir", "demo", "--num-train", "16", "--num-test", "4", *small, "--num_workers=1"]
    run(installed / "stgt", *demo, cwd=tmp_path)
    figures = json.loads((tmp_path / "demo/demo.json").read_text())
    assert figures["retrieval"]["frames in order"]["num_videos"] == 4
    assert (tmp_path / "demo/report.html").is_file()


def test_source_archive_makes_the_same_wheel(wheel, tmp_path):
    code = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    run(sys.executable, "-c", code, tmp_path, cwd=ROOT)
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        archive.extractall(tmp_path, filter="data")
    assert names(build_wheel(next(tmp_path.glob("*/")), tmp_path)) == names(wheel)
