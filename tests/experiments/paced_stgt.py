"""`stgt`, but each batch takes a while: the tests that stop a run while it goes start this."""

import sys
import time

from data_pipeline.loader import TrainLoader
from experiments.commands.main import main

PACE = 0.4  # seconds
next_batch = TrainLoader.__next__


def slowly(loader):
    time.sleep(PACE)
    return next_batch(loader)


if __name__ == "__main__":
    TrainLoader.__next__ = slowly
    sys.exit(main())
