"""The pictures of the report, each as the bytes of a PNG: graph edges, adjacency, similarities, curves, film strips.

Letters: T frames, P = G*G patches per frame, N = T*P graph nodes.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from einops import rearrange
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from scipy import stats

from stgt_jax.encoder import Encoder
from stgt_jax.errors import STGTError

INK, FAINT, GRID = "#243240", "#7b8794", "#e4e7eb"
COLORS = ("#2b6cb0", "#dd6b20", "#2f855a", "#9f3a78", "#6b46c1", "#b7791f")
_STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "axes.prop_cycle": plt.cycler(color=COLORS),
    "grid.color": GRID,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "figure.dpi": 130,
    "savefig.facecolor": "white",
}


@dataclass(frozen=True)
class Pictures:
    """Clips and their graphs."""

    video: np.ndarray  # [n, T, H, W, 3] uint8
    adjacency: np.ndarray  # [n, N, N] float32, of the first graph block
    captions: tuple[str, ...]  # n


class Edge(NamedTuple):
    """An edge from a patch of a frame to a patch of the next frame."""

    frame: int
    patch: int
    next_patch: int
    weight: float


def collect_pictures(encoder: Encoder, batch: Mapping[str, Any], count: int = 4) -> Pictures | None:
    """Computes the graphs of the first `count` valid clips of an evaluation batch.

    Returns:
      The clips with the adjacency of the first graph block; None for a model without the graph module.
    """
    if encoder.model.config.graph.variant == "none":
        return None
    rows = np.flatnonzero(batch["valid"])[:count]
    video = np.asarray(batch["video"])[rows]
    captions = [" / ".join(map(str, batch["caption"][batch["row"] == row])) for row in rows]
    return Pictures(video, encoder.adjacency(video), tuple(captions))


def patch_motion(video: np.ndarray, grid: int) -> np.ndarray:
    """Returns the mean absolute difference [T, P] of each patch's pixels from their median over time."""
    change = np.abs(video.astype(np.float32) - np.median(video, axis=0)).mean(axis=-1)  # [T, H, W]
    frames, height, width = change.shape
    change = change[:, : height // grid * grid, : width // grid * grid]
    return change.reshape(frames, grid, height // grid, grid, width // grid).mean(axis=(2, 4)).reshape(frames, -1)


def strongest_edges(weights: np.ndarray, video: np.ndarray, *, sources: int = 4, per_source: int = 2) -> list[Edge]:
    """Returns the strongest edges from the moving patches to the next frame; those of still patches are all near 1.

    Args:
      weights: [N, N] adjacency.
      video: [T, H, W, 3] uint8.
      sources: number of patches of each frame, those with the most motion.
      per_source: number of edges of each of these patches.
    """
    num_frames = video.shape[0]
    motion = patch_motion(video, _grid(weights, num_frames))  # [T, P]
    blocks = weights.reshape(num_frames, motion.shape[1], num_frames, motion.shape[1])
    edges = []
    for frame in range(num_frames - 1):
        moving = [patch for patch in np.argsort(-motion[frame])[:sources] if motion[frame, patch] > 0]
        for patch in moving:
            onward = blocks[frame, patch, frame + 1]  # [P]
            best = [to for to in np.argsort(-onward)[:per_source] if onward[to] > 0]
            edges += [Edge(frame, int(patch), int(to), float(onward[to])) for to in best]
    return edges


def draw_edges(video: np.ndarray, weights: np.ndarray) -> bytes:
    """Draws the frames of a clip [T, H, W, 3] side by side, with the strongest edges of its graph [N, N]."""
    num_frames, height, width = video.shape[:3]
    grid, edges, gap = _grid(weights, num_frames), strongest_edges(weights, video), 0.3 * width
    total = num_frames * width + (num_frames - 1) * gap
    with plt.rc_context(_STYLE):
        strip, below = 11 * height / total, 0.3  # inches
        figure = plt.figure(figsize=(11, strip + below))
        axes = figure.add_axes((0, below / (strip + below), 1, strip / (strip + below)))
        axes.set_facecolor(GRID)
        for frame in range(num_frames):
            left = frame * (width + gap)
            axes.imshow(video[frame], extent=(left, left + width, height, 0), interpolation="nearest")
        sizes = (grid, height, width, gap)
        lines = [(_centre(e.patch, e.frame, *sizes), _centre(e.next_patch, e.frame + 1, *sizes)) for e in edges]
        values = np.array([edge.weight for edge in edges])
        shown = Normalize(*_limits(values))
        widths = 0.8 + 1.6 * shown(values)
        axes.add_collection(LineCollection(lines, colors="black", linewidths=widths + 1.2, alpha=0.6))
        coloured = LineCollection(lines, array=values, cmap="cool", norm=shown, linewidths=widths)
        axes.add_collection(coloured)
        ends = np.array([point for line in lines for point in line]).reshape(-1, 2)
        axes.scatter(ends[:, 0], ends[:, 1], s=9, color="white", edgecolors=INK, linewidths=0.6, zorder=3)
        axes.set(xlim=(0, total), ylim=(height, 0), xticks=(), yticks=())
        axes.spines[:].set_visible(False)
        _edge_bar(figure, coloured)
        return _png(figure)


def draw_adjacency(weights: np.ndarray, num_frames: int) -> bytes:
    """Draws a graph [N, N] as a heat map with lines between the frames."""
    nodes = weights.shape[0]
    edges = np.arange(num_frames + 1) * nodes // num_frames
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(figsize=(5.6, 4.9), layout="constrained")
        image = axes.imshow(weights, cmap="magma", vmin=min(0.0, float(weights.min())), vmax=1.0)
        for edge in edges[1:-1]:
            axes.axhline(edge - 0.5, color="white", linewidth=0.4, alpha=0.5)
            axes.axvline(edge - 0.5, color="white", linewidth=0.4, alpha=0.5)
        middles = (edges[:-1] + edges[1:]) / 2 - 0.5
        names = [str(frame) for frame in range(num_frames)]
        axes.set_xticks(middles, names)
        axes.set_yticks(middles, names)
        axes.set(xlabel="patches of frame", ylabel="patches of frame")
        axes.tick_params(length=0)
        _colorbar(figure, image, axes, "edge weight (0 is no edge)")
        return _png(figure)


def draw_similarity(similarity: np.ndarray, limits: tuple[float, float]) -> bytes:
    """Draws video-text similarities [V, C] as a heat map; `limits` are the range of its colours."""
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(figsize=(5.6, 4.9), layout="constrained")
        low, high = limits
        image = axes.imshow(similarity, cmap="viridis", aspect="auto", interpolation="nearest", vmin=low, vmax=high)
        axes.set(xlabel="captions", ylabel="videos")
        _colorbar(figure, image, axes, "similarity")
        return _png(figure)


def draw_curves(stages: Mapping[str, Sequence[Mapping[str, float]]]) -> bytes:
    """Draws losses, accuracies and validation scores over the steps of all stages.

    Args:
      stages: name of each stage -> lines of its metrics.jsonl.
    """
    panels = {
        "Losses": ("loss_contrastive", "loss_vtm", "loss_vtg"),
        "Accuracy in the batch": ("accuracy_t2v", "accuracy_v2t", "accuracy_vtm"),
        "Validation, percent": ("validation/t2v_r1", "validation/v2t_r1", "validation/twin_accuracy"),
    }
    with plt.rc_context(_STYLE):
        figure, all_axes = plt.subplots(1, 3, figsize=(11, 2.9), layout="constrained")
        for axes, (title, names) in zip(all_axes, panels.items(), strict=True):
            for name, color in zip(names, COLORS, strict=False):
                _draw_curve(axes, stages, name, color)
            start = 0.0
            for stage, lines in stages.items():
                if start:
                    axes.axvline(start, color=FAINT, linewidth=0.8, linestyle=":")
                axes.annotate(stage, (start, 1), (3, -2), xycoords=("data", "axes fraction"), va="top",
                              textcoords="offset points", color=FAINT, fontsize=7)  # fmt: skip
                start += max((line["step"] for line in lines), default=0.0)
            axes.set(title=title, xlabel="step")
            axes.set_ylim(bottom=0)
            axes.set_xlim(0, max(start, 1.0))
            axes.grid(axis="y")
            if axes.get_legend_handles_labels()[0]:
                axes.legend()
        return _png(figure)


def draw_seed_curves(panels: Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray]]]) -> bytes:
    """Draws the mean over seeds, with its standard error as a band, over the steps of a training.

    Args:
      panels: title -> name of the curve -> steps [n] and values of each seed [seeds, n].
    """
    with plt.rc_context(_STYLE):
        figure, all_axes = plt.subplots(1, len(panels), figsize=(11, 3.4), layout="constrained")
        for axes, (title, curves) in zip(np.atleast_1d(all_axes), panels.items(), strict=True):
            for number, (name, (steps, values)) in enumerate(curves.items()):
                mean, color = values.mean(axis=0), COLORS[number % len(COLORS)]
                line = "-" if number < len(COLORS) else "--"
                axes.plot(steps, mean, line, color=color, linewidth=1.4, marker=".", label=name)
                if len(values) > 1:
                    error = stats.sem(values)
                    axes.fill_between(steps, mean - error, mean + error, color=color, alpha=0.15, linewidth=0)
            axes.set(title=title, xlabel="step of the stage")
            axes.grid(axis="y")
        np.atleast_1d(all_axes)[0].legend()
        return _png(figure)


def film_strip(clip: np.ndarray, *, num_frames: int = 8) -> bytes:
    """Draws at most `num_frames` frames of a clip [T, H, W, 3] uint8 in two rows."""
    frames = clip[np.linspace(0, len(clip) - 1, min(num_frames, len(clip))).round().astype(int)]
    columns = -(-len(frames) // 2)
    missing = -len(frames) % columns
    frames = np.concatenate([frames, np.full((missing, *frames.shape[1:]), 255, np.uint8)])
    frames = np.pad(frames, ((0, 0), (0, 2), (0, 2), (0, 0)), constant_values=255)
    sheet = rearrange(frames, "(row col) h w c -> (row h) (col w) c", col=columns)
    buffer = io.BytesIO()
    plt.imsave(buffer, np.ascontiguousarray(sheet[:-2, :-2]), format="png")
    return buffer.getvalue()


def _draw_curve(axes: Axes, stages: Mapping[str, Sequence[Mapping[str, float]]], name: str, color: str) -> None:
    """Draws a metric over all stages: faint single steps under their running mean, or dots if there are few."""
    start, label = 0.0, name.removeprefix("validation/").removeprefix("loss_").removeprefix("accuracy_")
    for lines in stages.values():
        points = [(start + line["step"], line[name]) for line in lines if line.get(name) is not None]
        start += max((line["step"] for line in lines), default=0.0)
        if not points:
            continue
        steps, values = np.array(points, dtype=float).T
        if len(points) > 60:
            axes.plot(steps, values, color=color, alpha=0.18, linewidth=0.6)
            window = max(5, len(points) // 40)
            values = np.convolve(values, np.ones(window) / window, mode="valid")
            steps = steps[window // 2 :][: len(values)]
        axes.plot(steps, values, color=color, marker="o" if len(points) <= 60 else "", markersize=3, linewidth=1.4,
                  label=label)  # fmt: skip
        label = "_nolegend_"


def _grid(weights: np.ndarray, num_frames: int) -> int:
    patches, rest = divmod(weights.shape[0], num_frames)
    grid = round(patches**0.5)
    if rest or grid**2 != patches:
        raise STGTError(f"a graph of {weights.shape[0]} nodes does not fit {num_frames} frames with square patch grids")
    return grid


def _centre(patch: int, frame: int, grid: int, height: int, width: int, gap: float) -> tuple[float, float]:
    row, column = divmod(patch, grid)
    return frame * (width + gap) + (column + 0.5) * width / grid, (row + 0.5) * height / grid


def _limits(values: np.ndarray) -> tuple[float, float]:
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)
    return (low, high) if high - low > 1e-6 else (low - 0.5, low + 0.5)


def _edge_bar(figure: Figure, lines: LineCollection) -> None:
    height = figure.get_figheight()
    axes = figure.add_axes((0.09, 0.16 / height, 0.2, 0.08 / height))
    bar = figure.colorbar(lines, cax=axes, orientation="horizontal")
    bar.ax.tick_params(labelsize=7, length=2, pad=1)
    bar.outline.set_visible(False)  # type: ignore[operator]
    figure.text(0.003, 0.2 / height, "weight of the edge", fontsize=7, va="center", color=FAINT)


def _colorbar(figure: Figure, image: Any, axes: Axes, label: str) -> None:
    bar = figure.colorbar(image, ax=axes, label=label, fraction=0.045, pad=0.02)
    bar.outline.set_visible(False)  # type: ignore[operator]


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    plt.close(figure)
    return buffer.getvalue()
