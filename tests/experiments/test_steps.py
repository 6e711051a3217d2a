"""Steps of a longer run: each done once, in a folder that belongs to one run."""

import json

import numpy as np
import pytest

from experiments.steps import Steps, read_json, write_json
from stgt_jax.errors import STGTError


def test_finished_step_is_not_repeated_and_its_result_and_time_are_kept(tmp_path):
    first = Steps(tmp_path, {"size": 1})
    assert first.run("make", "making", lambda: {"count": 3}) == {"count": 3}
    again = Steps(tmp_path, {"size": 1})
    assert again.run("make", "making", lambda: pytest.fail("was done before")) == {"count": 3}
    assert again.seconds == first.seconds


def test_step_that_failed_is_repeated(tmp_path):
    def fail():
        raise STGTError("no")

    with pytest.raises(STGTError):
        Steps(tmp_path, {}).run("make", "making", fail)
    assert Steps(tmp_path, {}).run("make", "making", lambda: {"count": 3}) == {"count": 3}


def test_step_whose_output_was_deleted_is_repeated(tmp_path):
    output = tmp_path / "output"

    def make():
        output.write_text("x")
        return {}

    Steps(tmp_path, {}).run("make", "making", make, output=output)
    output.unlink()
    Steps(tmp_path, {}).run("make", "making", make, output=output)
    assert output.exists()


def test_folder_of_a_run_with_other_settings_is_refused(tmp_path):
    Steps(tmp_path, {"size": 1, "scale": (0.5, 1.0)})
    Steps(tmp_path, {"size": 1, "scale": (0.5, 1.0)})
    with pytest.raises(STGTError, match="holds a run with size=1, now it is 2; choose another --workdir or delete"):
        Steps(tmp_path, {"size": 2, "scale": (0.5, 1.0)})


def test_json_has_plain_numbers_and_null_for_nan(tmp_path):
    write_json(tmp_path / "deep" / "f.json", {"a": np.float32(0.5), "b": [np.nan, np.int64(3)], "c": {"d": np.inf}})
    assert json.loads((tmp_path / "deep" / "f.json").read_text()) == {"a": 0.5, "b": [None, 3], "c": {"d": None}}


def test_broken_json_is_named(tmp_path):
    (tmp_path / "f.json").write_text("{")
    with pytest.raises(STGTError, match=r"f\.json' cannot be read"):
        read_json(tmp_path / "f.json")
