"""The exceptions of this project: `STGTError` for what the user can correct, `Preempted` for a requested stop."""


class STGTError(ValueError):
    """A mistake the user can correct: a bad option, a missing file, a checkpoint of another model.

    The message is one line. It names the option, field or file and says what to do.
    """


class StorageError(STGTError):
    """What a run must keep cannot be written: the disk is full, or the folder is gone.

    A thread of the storage library may wait for ever then, so a program ends without waiting for its threads.
    """


class Preempted(Exception):  # noqa: N818  (nothing went wrong)
    """Training was asked to stop and has saved a checkpoint. The message names the checkpoint."""
