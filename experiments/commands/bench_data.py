"""`stgt bench data`."""

from experiments.commands.values import Figures
from experiments.perf.bench.settings import DataSettings


def bench_data(*, settings: DataSettings) -> Figures:
    """Compare the training loader with decoding videos in the loop, in speed and memory."""
    from experiments.perf.bench import data

    figures = data.bench_data(settings)
    print(data.format_figures(figures))
    return figures
