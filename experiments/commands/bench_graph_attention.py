"""`stgt bench graph-attention`."""

from experiments.commands.values import Figures
from experiments.perf.bench.settings import GraphAttentionSettings


def bench_graph_attention(*, settings: GraphAttentionSettings) -> Figures:
    """Compare the implementations of graph attention in time and memory."""
    from experiments.perf.bench import graph_attention
    from experiments.perf.bench.graph_attention_figures import format_figures

    figures = graph_attention.bench_graph_attention(settings)
    print(format_figures(figures))
    return figures
