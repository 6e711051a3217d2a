"""The `stgt` command, also as `python -m stgt_jax`."""

import sys

from experiments.commands.main import main

if __name__ == "__main__":
    sys.exit(main())
