"""The exceptions of this project: `STGTError` for what the user can correct, `Preempted` for a requested stop."""

LONGEST_MESSAGE = 2000  # characters


class STGTError(ValueError):
    """A mistake the user can correct: a bad option, a missing file, a checkpoint of another model.

    The message is one line. It names the option, field or file and says what to do. Names and values in it may come
    from a file of anybody, so characters that would steer a terminal are written as their numbers.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(_one_line(message))


def _one_line(message: str) -> str:
    line = "".join(map(_shown, message))
    half = LONGEST_MESSAGE // 2 - 5
    return line if len(line) <= LONGEST_MESSAGE else f"{line[:half]} [...] {line[-half:]}"


def _shown(character: str) -> str:
    if character in "\n\r\t":
        return " "
    return character if character.isprintable() else character.encode("unicode_escape").decode()


class StorageError(STGTError):
    """What a run must keep cannot be written: the disk is full, or the folder is gone.

    A thread of the storage library may wait for ever then, so a program ends without waiting for its threads.
    """


class Preempted(Exception):  # noqa: N818  (nothing went wrong)
    """Training was asked to stop and has saved a checkpoint. The message names the checkpoint."""
