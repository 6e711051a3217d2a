"""Models go to the Hub and come back; a stand-in on this machine takes its place."""

import subprocess
import sys

import numpy as np
import pytest
from hub_server import HubServer
from processes import environment

from stgt_jax.errors import STGTError
from stgt_jax.exported import PRETRAINED
from stgt_jax.hub import download, push_to_hub

pytestmark = pytest.mark.slow
OTHERS = '{"weights_of_others": ["eva_vit_g.pth"]}'


@pytest.fixture
def hub():
    server = HubServer()
    yield server
    server.close()


@pytest.fixture
def run_python(hub, tmp_path):
    """Runs Python code, for which the stand-in is the Hub: the library reads its address when it is imported."""

    def run(code, *words):
        env = environment() | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "cache"), "HF_TOKEN": "hf_test",
                               "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}  # fmt: skip
        return subprocess.run([sys.executable, "-c", code, *map(str, words)], env=env, capture_output=True, text=True)

    return run


PUSH = "import sys; from experiments.commands.main import main; sys.exit(main(sys.argv[1:]))"
LOAD = """
import sys
import numpy as np
import stgt_jax as stgt
np.save(sys.argv[1], stgt.load(sys.argv[2]).encode_text(["a red circle grows"]))
"""


def test_model_is_pushed_with_a_card_and_loaded_by_its_address(hub, run_python, tmp_path):
    done = run_python(PUSH, "weights", "push", PRETRAINED / "moving_shapes", "me/shapes", "--licence", "apache-2.0")
    assert done.returncode == 0 and f"{hub.url}/me/shapes" in done.stdout, done.stderr
    card = hub.files["me/shapes"].pop("README.md").decode()
    assert card.startswith("---\nlicense: apache-2.0\n") and 'stgt.load("hf://me/shapes")' in card
    assert "trained with stgt_jax" in card
    for name, data in hub.files["me/shapes"].items():
        assert data == (PRETRAINED / "moving_shapes" / name).read_bytes()
    assert {"config.json", "vocab.txt", "weights.safetensors"} <= hub.files["me/shapes"].keys()
    hub.files["me/shapes"]["pickle.bin"] = b"not wanted"
    for source, name in (("hf://me/shapes", "there.npy"), ("moving_shapes", "here.npy")):
        done = run_python(LOAD, tmp_path / name, source)
        assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "there.npy"), np.load(tmp_path / "here.npy"))
    assert not [path for path in hub.asked if "pickle" in path]


def test_what_is_not_there_is_one_line(hub, run_python, tmp_path):
    done = run_python(LOAD, tmp_path / "x.npy", "hf://me/nothing")
    message = "STGTError: 'hf://me/nothing' cannot be downloaded (RepositoryNotFoundError: "
    assert message in done.stderr.splitlines()[-1]
    hub.close()


@pytest.mark.parametrize("address", ["hf://name", "hf://a/b/c", "hf://a/b@", "hf://../x y"])
def test_address_of_another_form_is_refused(address):
    with pytest.raises(STGTError, match="is not an address of the Hub; write hf://ORGANISATION/NAME"):
        download(address)


def test_weights_of_others_need_their_licence(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for file in (PRETRAINED / "moving_shapes").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "conversion.json").write_text(OTHERS)
    with pytest.raises(STGTError, match=r"other projects' weights \(eva_vit_g\.pth\); state the licence"):
        push_to_hub(folder, "me/model")
    with pytest.raises(STGTError, match="is not the name of a repository; write ORGANISATION/NAME"):
        push_to_hub(folder, "model", licence="mit")
