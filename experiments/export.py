"""Export of a trained model, with a record of how it was made and what it scores: what `stgt export` runs."""

import subprocess
from pathlib import Path
from typing import Any

from experiments.evaluate import retrieval
from experiments.steps import write_json
from experiments.storage import check_storage
from stgt_jax.exported import export
from stgt_jax.run_folder import folder_path, read_run
from stgt_jax.train.checkpoint import checkpoint_folder, load_params

ORIGIN_NAME = "origin.json"


def export_checkpoint(
    checkpoint: str | Path, folder: str | Path, *, shards: str | Path = "", split: str = "test", made_by: str = ""
) -> dict[str, Any]:
    """Writes the model of a checkpoint to a folder of its own.

    Args:
      checkpoint: the folder of a training (its newest checkpoint) or of one checkpoint.
      folder: to write to.
      shards: shard set to measure retrieval on; empty to measure nothing.
      split: of the shard set.
      made_by: command that trained the model.

    Returns:
      What origin.json holds: command, commit of this code ("-dirty" if files differ from it), name of the checkpoint
      and, if they were measured, split and figures (`RetrievalResult.to_dict`).

    Raises:
      STGTError: no such checkpoint or shards, or shards that do not fit the model.
    """
    check_storage(checkpoint, folder, shards)
    run = read_run(checkpoint)
    origin: dict[str, Any] = {
        "command": made_by,
        "commit": _commit(),
        "checkpoint": checkpoint_folder(checkpoint).name,
    }
    if shards:
        result = retrieval(checkpoint, shards, split=split, k_test=32, batch_size=32)
        origin |= {"split": split, "figures": result.to_dict()}
    export(run, load_params(checkpoint, run.model), folder)
    write_json(folder_path(folder) / ORIGIN_NAME, origin)
    return origin


def _commit() -> str:
    """The commit of the checkout that this file belongs to; empty if it belongs to none."""
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
