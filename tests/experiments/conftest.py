"""What the tests of every command share."""

import pytest
from command_process import CommandProcess
from small_recipe import SMALL

from data_pipeline.build import build_shards
from data_pipeline.moving_shapes import make_moving_shapes
from experiments.commands.main import main


def pytest_collection_modifyitems(items):
    """Leaves the tests out of `make check` that run a command in a process: nearly all of them train."""
    for item in items:
        if "run_stgt" in getattr(item, "fixturenames", ()):
            item.add_marker("slow")


@pytest.fixture
def error_of(capsys):
    """Returns the function that runs a command which must fail, and gives back its one line."""

    def run(*argv: str) -> str:
        assert main([str(word) for word in argv]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("stgt: error: ")
        return lines[0].removeprefix("stgt: error: ")

    return run


@pytest.fixture(scope="session")
def run_stgt():
    """Runs a command in a process on one device that keeps what it compiles: `run_stgt("eval", ..., folder=...)`."""
    with CommandProcess() as process:
        yield process.run


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    """A shard set of 16 + 4 clips, with captions as long as the demo's: the same programs serve both."""
    folder = tmp_path_factory.mktemp("data")
    make_moving_shapes(folder / "clips", num_train=16, num_test=4, image_size=32, num_frames=8, progress=False)
    for split in ("train", "test"):
        build_shards(
            folder / "clips" / split / "captions.csv",
            folder / "shards",
            split=split,
            num_kept_frames=4,
            resize=32,
            max_text_length=24,
            num_workers=0,
            progress=False,
        )
    return folder / "shards"


@pytest.fixture(scope="session")
def trained_run(run_stgt, shards, tmp_path_factory):
    """The folder of a trained first stage, with a name that could be taken for a pattern; not to be changed."""
    workdir = tmp_path_factory.mktemp("runs [1]*?") / "stage1"
    train = ["pretrain", "moving_shapes_stage1", "--workdir", workdir, "--data.shards", shards, *SMALL]
    done = run_stgt(*train, "--json", workdir.parent / "losses.json")
    assert done.returncode == 0, done.stderr
    return workdir
