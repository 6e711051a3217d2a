"""The one error class for what a user can mend about data: a bad option, a missing file, an unusable clip."""


class DataError(ValueError):
    """A mistake the user can mend. The message is one line: it names the thing and says what to do."""
