"""`stgt bench graph-attention`."""

from dataclasses import dataclass

from experiments.commands.values import Figures
from experiments.perf.bench.settings import GraphAttentionSettings


@dataclass(frozen=True)
class BenchGraphAttention(GraphAttentionSettings):
    """Compare the implementations of graph attention in time and memory."""

    def run(self) -> Figures:
        from experiments.perf.bench.graph_attention import bench_graph_attention
        from experiments.perf.bench.graph_attention_figures import format_figures

        figures = bench_graph_attention(self)
        print(format_figures(figures))
        return figures
