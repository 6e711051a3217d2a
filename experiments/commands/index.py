"""`stgt index`."""

from experiments.commands.values import Figures, Folder
from stgt_jax.convert.options import Conversion


def index(
    folder: str,  # with videos, also in folders of it
    *,
    weights: tuple[str, ...],  # of the model: a run, a model, or other projects' files; as stgt_jax.load takes them
    out: Folder,  # folder of the index
    segment_seconds: float = 30.0,  # videos longer than this by half are cut into overlapping segments of this length
    encode_batch_size: int = 32,  # clips encoded at a time
    options: Conversion,
) -> Figures:
    """Make an index of the videos in a folder, or bring one up to date.

    New and changed files are read, deleted ones removed, unchanged ones skipped. `stgt search` searches the index.
    """
    import dataclasses

    import stgt_jax as stgt

    default = Conversion()
    given = {name: value for name, value in dataclasses.asdict(options).items() if value != getattr(default, name)}
    made = stgt.index(
        folder, out, weights=weights if len(weights) > 1 else weights[0], segment_seconds=segment_seconds,
        batch_size=encode_batch_size, **given,
    )  # fmt: skip
    changes = made.changes
    assert changes is not None
    for path, reason in changes.unreadable.items():
        print(f"not read: {path}: {reason}")
    counts = {name: getattr(changes, name) for name in ("added", "changed", "removed", "unchanged")}
    print(
        f"{out}: {made.store.num_clips} clips of {len(made.store.files)} files; "
        + ", ".join(f"{count} {name}" for name, count in counts.items())
        + f", {len(changes.unreadable)} not or not wholly read"
    )
    return counts | {"num_clips": made.store.num_clips, "unreadable": changes.unreadable}
