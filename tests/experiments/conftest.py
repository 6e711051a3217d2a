"""What the tests of every command share."""

import pytest

from experiments.cli import main


@pytest.fixture
def error_of(capsys):
    """Returns the function that runs a command which must fail, and gives back its one line."""

    def run(*argv: str) -> str:
        assert main([str(word) for word in argv]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("stgt: error: ")
        return lines[0].removeprefix("stgt: error: ")

    return run
