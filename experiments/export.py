"""Exports a trained model with a record of its origin: the command, the commit and the scores."""

import subprocess
from pathlib import Path
from typing import Any

from experiments.evaluate import retrieval
from experiments.steps import write_json
from stgt_jax.exported import export
from stgt_jax.run_folder import folder_path, read_run, write_whole
from stgt_jax.storage import check_storage
from stgt_jax.train.checkpoint import checkpoint_folder, load_params
from stgt_jax.train.weights import CONVERSION_NAME, ORIGINS_NAME

ORIGIN_NAME = "origin.json"


def export_checkpoint(
    checkpoint: str | Path, folder: str | Path, *, shards: str | Path = "", split: str = "test", made_by: str = ""
) -> dict[str, Any]:
    """Writes the model of a checkpoint to a folder.

    Args:
      checkpoint: folder of a training (its newest checkpoint) or of one checkpoint.
      folder: folder to write to.
      shards: shard set to measure retrieval on; empty to measure nothing.
      split: of the shard set.
      made_by: command that trained the model.

    Returns:
      The contents of origin.json: command, commit of this code ("-dirty" if files differ from it), name of the
      checkpoint and, if retrieval was measured, split and figures (`RetrievalResult.to_dict`).

    Raises:
      STGTError: the checkpoint or the shards do not exist, or do not fit each other.
    """
    check_storage(checkpoint, folder, shards)
    run = read_run(checkpoint)
    origin: dict[str, Any] = {"command": made_by, "commit": _commit(), "checkpoint": checkpoint_folder(checkpoint).name}
    if shards:
        result = retrieval(checkpoint, shards, split=split, k_test=32, batch_size=32)
        origin |= {"split": split, "figures": result.to_dict()}
    export(run, load_params(checkpoint, run.model), folder)
    for record in (ORIGINS_NAME, CONVERSION_NAME):
        if (run.folder / record).exists():
            write_whole(folder_path(folder) / record, (run.folder / record).read_bytes())
    write_json(folder_path(folder) / ORIGIN_NAME, origin)
    return origin


def _commit() -> str:
    """Returns the commit of the checkout that contains this file, or the empty string if there is none."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        subprocess.run([*git, "ls-files", "--error-unmatch", __file__], check=True, capture_output=True)
        described = subprocess.run(
            [*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return ""
    return described.stdout.strip()
