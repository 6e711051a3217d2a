"""Models on the Hugging Face Hub: `hf://ORGANISATION/NAME`, with `@REVISION` for another one than the newest."""

import json
import re
import tempfile
from pathlib import Path
from typing import Any

from stgt_jax.errors import STGTError
from stgt_jax.exported import WEIGHTS_NAME, export, is_exported
from stgt_jax.run_folder import CONFIG_NAME, VOCAB_NAME, PathLike, folder_path, read_run
from stgt_jax.train.checkpoint import load_params
from stgt_jax.train.weights import CONVERSION_NAME, ORIGINS_NAME, weights_of_others

PREFIX = "hf://"
_OWN = (CONFIG_NAME, VOCAB_NAME, WEIGHTS_NAME, CONVERSION_NAME, ORIGINS_NAME, "origin.json")
_SAFETENSORS = ("model*.safetensors", "model.safetensors.index.json")
_TORCH = ("pytorch_model*.bin", "pytorch_model.bin.index.json")


def download(address: str) -> Path:
    """Downloads a model, or finds it among those downloaded before, and returns its folder.

    Of another project's model only the weights are fetched (safetensors before pickles), config.json and vocab.txt.

    Args:
      address: such as "hf://organisation/name" or "hf://organisation/name@revision".

    Raises:
      STGTError: the address is not of that form, or the Hub cannot be reached, or has no such model for this user.
    """
    import huggingface_hub

    found = re.fullmatch(r"hf://([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", address)
    if not found:
        raise STGTError(f"'{address}' is not an address of the Hub; write hf://ORGANISATION/NAME or .../NAME@REVISION")
    repo, revision = found.groups()
    try:
        files = huggingface_hub.HfApi().list_repo_files(repo, revision=revision)
        wanted: tuple[str, ...] = _OWN
        if WEIGHTS_NAME not in files:
            is_safe = any(re.fullmatch(r"model.*\.safetensors", name) for name in files)
            wanted = (CONFIG_NAME, VOCAB_NAME, *(_SAFETENSORS if is_safe else _TORCH))
        return Path(huggingface_hub.snapshot_download(repo, revision=revision, allow_patterns=list(wanted)))
    except Exception as error:  # network, permissions, names: the library has an exception for each
        raise _failed(f"'{address}' cannot be downloaded", error) from error


def push_to_hub(model: PathLike, repo: str, *, licence: str = "", private: bool = False) -> str:
    """Uploads a model with a model card.

    Args:
      model: folder of a run (its newest checkpoint counts), of a checkpoint, or of an exported or converted model.
      repo: "ORGANISATION/NAME"; it is created if it does not exist.
      licence: its name on the Hub, such as "apache-2.0". A model made of other projects' weights needs one: theirs.
      private: create the repository as a private one.

    Returns:
      The address of the model's page.

    Raises:
      STGTError: weights of others without a licence, no model in that folder, or the Hub refuses.
    """
    import huggingface_hub

    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise STGTError(f"'{repo}' is not the name of a repository; write ORGANISATION/NAME")
    run, others = read_run(model), weights_of_others(model)
    if others and not licence:
        raise STGTError(
            f"'{model}' is made of other projects' weights ({', '.join(others)}); state the licence under which they"
            " may be passed on, such as --licence bsd-3-clause. Licences of the sources differ: look them up first"
        )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(folder_path(model))
        if not is_exported(model):
            folder = Path(temporary)
            export(run, load_params(model, run.model), folder)
        card = _model_card(repo, run.content, others, licence).encode()
        api = huggingface_hub.HfApi()
        try:
            api.create_repo(repo, private=private, exist_ok=True)
            add = huggingface_hub.CommitOperationAdd
            operations = [add(name, folder / name) for name in _OWN if (folder / name).exists()]
            api.create_commit(
                repo, [add("README.md", card), *operations], commit_message="A model of stgt_jax", revision="main"
            )
        except Exception as error:
            raise _failed(f"'{repo}' cannot be uploaded to", error) from error
        return f"{api.endpoint}/{repo}"


def _failed(what: str, error: Exception) -> STGTError:
    reason = next((line for line in str(error).splitlines() if line.strip()), "")[:200]
    return STGTError(
        f"{what} ({type(error).__name__}: {reason}); check the name, the connection, and `hf auth login` for private"
        " models"
    )


def _model_card(repo: str, content: Any, others: list[str], licence: str) -> str:
    """The README.md of a repository: its licence for the Hub, how to load the model, and where it comes from."""
    model = content["model"]
    frames, side = model["num_frames"], model["vision"]["image_size"]
    origin = "Its weights were trained with stgt_jax."
    if others:
        names = ", ".join(f"`{Path(path).name}`" for path in others)
        origin = f"Its weights are, or started from, weights of other projects: {names}. Their licence applies."
    front = ["---", *([f"license: {licence}"] if licence else []), "library_name: stgt_jax",
             "tags:", "- video-text-retrieval", "- jax", "---"]  # fmt: skip
    return "\n".join([
        *front,
        f"# {repo.partition('/')[2]}",
        "",
        f"A video-language model (STGT, arXiv 2407.11677). It takes {frames} frames of {side}x{side} pixels. {origin}",
        "",
        "```python",
        "import stgt_jax as stgt",
        "",
        f'model = stgt.load("{PREFIX}{repo}")',
        'scores = model.similarity(["video.mp4"], ["a sentence", "another one"])  # [1, 2]',
        "```",
        "",
        "Its config:",
        "",
        "```json",
        json.dumps(model, indent=2),
        "```",
        "",
    ])  # fmt: skip
