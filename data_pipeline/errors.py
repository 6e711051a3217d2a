"""The exception of this package, for a mistake the user can correct: a bad option, a missing file, an unusable clip."""

from stgt_jax.errors import STGTError


class DataError(STGTError):
    """A mistake in the data or in its options. The message is one line: it names the file or option and what to do."""
