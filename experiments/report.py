"""The report: one HTML page with the figures and the pictures of a run. Pictures and style are inline.

The layout and the style of the page are in report.html beside this file.
"""

import base64
import html
import math
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from experiments.ablation.summary import Results, ablation_tables, learning_curves
from experiments.pictures import (
    Pictures,
    draw_adjacency,
    draw_curves,
    draw_edges,
    draw_seed_curves,
    draw_similarity,
    film_strip,
)
from stgt_jax.errors import STGTError
from stgt_jax.eval.captioning import CaptioningResult, describe_metrics
from stgt_jax.eval.metrics import RECALLS
from stgt_jax.eval.retrieval import RetrievalResult, time_order_metrics
from stgt_jax.train.json_lines import read_line

NUM_QUERIES = 6
NUM_HITS = 5
NUM_CAPTIONED = 6


@dataclass(frozen=True)
class ReportInputs:
    """The contents of a report. Only `retrieval` is required."""

    retrieval: RetrievalResult
    shuffled: RetrievalResult | None = None  # for the same gallery with shuffled frames
    gallery: np.ndarray | None = None  # [V, T, H, W, 3] uint8, in the order of retrieval.video_ids
    pictures: Pictures | None = None
    captions: CaptioningResult | None = None  # of clips of the gallery
    answering: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)  # `accuracy_by_type`
    curves: Mapping[str, Sequence[Mapping[str, float]]] = field(default_factory=dict)  # stage -> `read_curve`
    ablation: Results = field(default_factory=dict)  # of `stgt ablate`
    counts: Mapping[str, Any] = field(default_factory=dict)  # label -> number or text, about the data and the run
    title: str = "STGT: video-language alignment with a spatio-temporal graph"


def write_report(path: str | Path, inputs: ReportInputs) -> Path:
    """Writes the page to `path` and returns `path`. Sections without input are left out.

    Raises:
      STGTError: the gallery and the retrieval result have different numbers of clips.
    """
    if inputs.gallery is not None and len(inputs.gallery) != len(inputs.retrieval.video_ids):
        raise STGTError(
            f"gallery holds {len(inputs.gallery)} clips, the retrieval result {len(inputs.retrieval.video_ids)};"
            " pass the clips of its video_ids in their order"
        )
    sections = (
        _summary(inputs),
        _retrieval(inputs.retrieval),
        _time_order(inputs),
        _top_hits(inputs),
        _captions(inputs),
        _answering(inputs.answering),
        _graph(inputs.pictures),
        _similarities(inputs),
        _curves(inputs),
        _ablation(inputs.ablation),
        _counts(inputs.counts),
    )
    page = string.Template(Path(__file__).with_suffix(".html").read_text(encoding="utf-8"))
    body = "\n".join(section for section in sections if section)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page.substitute(title=html.escape(inputs.title), body=body), encoding="utf-8")
    return path


def read_curve(path: str | Path) -> list[dict[str, float]]:
    """Returns the lines of a run's metrics.jsonl.

    Raises:
      STGTError: the file is missing or is not in the format JSON lines.
    """
    try:
        return [read_line(line) for line in Path(path).read_text().splitlines()]
    except (OSError, ValueError) as error:
        raise STGTError(f"'{path}' cannot be read as the metrics of a run ({error}); train again") from error


def _summary(inputs: ReportInputs) -> str:
    result, metrics = inputs.retrieval, inputs.retrieval.reranked_metrics
    chance = 100.0 / len(result.video_ids)
    tiles = [
        ("text to video R@1", f"{metrics['t2v_r1']:.1f} %", f"re-ranked; chance {chance:.1f} %"),
        ("video to text R@1", f"{metrics['v2t_r1']:.1f} %", "re-ranked"),
    ]
    order = time_order_metrics(result)["similarity"]
    if order["num_texts"]:
        below = f"chance {order['twin_chance']:.0f} %"
        if inputs.shuffled is not None:
            shuffled = time_order_metrics(inputs.shuffled)["similarity"]
            below = f"frames shuffled {shuffled['twin_accuracy']:.1f} %, {below}"
        tiles.append(("right order preferred", f"{order['twin_accuracy']:.1f} %", below))
    tiles.append(("gallery", f"{len(result.video_ids)} clips", f"{len(result.captions)} captions"))
    cells = (f"<div class='tile'><p>{a}</p><strong>{b}</strong><p>{c}</p></div>" for a, b, c in tiles)
    return f"<div class='tiles'>{''.join(cells)}</div>"


def _retrieval(result: RetrievalResult) -> str:
    columns = {f"R@{k}": f"r{k}" for k in RECALLS} | {"median rank": "median_rank", "mean rank": "mean_rank"}
    rows = [
        [direction + name, *(metrics[f"{key}_{column}"] for column in columns.values())]
        for direction, key in (("text to video", "t2v"), ("video to text", "v2t"))
        for name, metrics in (("", result.metrics), (", re-ranked", result.reranked_metrics))
    ]
    note = (
        f"Recalls are in percent, over a gallery of {len(result.video_ids)} clips and {len(result.captions)} captions."
        f" Ties count against the model. Re-ranked: the {result.k_test} most similar candidates of each query get the"
        " score similarity + P(match). A right answer that is not among them ranks last."
    )
    return _section("Retrieval", note, _table(["", *columns], rows))


def _time_order(inputs: ReportInputs) -> str:
    order = time_order_metrics(inputs.retrieval)
    if not order["similarity"]["num_texts"]:
        return ""
    named = {"frames in order": order}
    if inputs.shuffled is not None:
        named["frames shuffled"] = time_order_metrics(inputs.shuffled)
    rows = [
        [name + suffix, metrics[how]["twin_accuracy"], metrics[how]["t2v_r1"]]
        for name, metrics in named.items()
        for how, suffix in (("similarity", ""), ("reranked", ", re-ranked"))
    ]
    note = (
        f"{order['similarity']['num_texts']} captions differ from the caption of another clip only in the order of"
        " events (left to right, or right to left). The table shows how often a clip gives the higher score to its own"
        f" caption; chance is {order['similarity']['twin_chance']:.0f} %. R@1 is text to video, for these captions"
        " against the whole gallery. With shuffled frames the accuracy should fall to chance; otherwise the model finds"
        " the answer without the order of the frames."
    )
    return _section("Does it see time?", note, _table(["", "right order preferred", "R@1"], rows))


def _top_hits(inputs: ReportInputs) -> str:
    if inputs.gallery is None:
        return ""
    result, blocks = inputs.retrieval, []
    for text in _queries(result):
        scores = result.text_to_video[:, text]
        hits = []
        for rank, video in enumerate(np.argsort(-scores, kind="stable")[: min(NUM_HITS, result.k_test)], start=1):
            right = video == result.video_of_text[text]
            name = html.escape(result.video_ids[video])
            label = f"{rank}{' ✓' if right else ''} · {name} · {scores[video]:.2f}"
            image = film_strip(inputs.gallery[video]), f"rank {rank}: frames of {name}"
            hits.append(_figure(*image, label, "hit right" if right else "hit"))
        caption = html.escape(result.captions[text])
        blocks.append(f"<h3>“{caption}”</h3><div class='hits'>{''.join(hits)}</div>")
    note = (
        f"The {NUM_HITS} best clips for {len(blocks)} captions, with their re-ranked scores. The captions are evenly"
        " spaced in the gallery, whether retrieval succeeds or not. The right clip has a green frame."
    )
    return _section("Retrieved clips", note, *blocks)


def _captions(inputs: ReportInputs) -> str:
    result = inputs.captions
    if result is None:
        return ""
    rows = []
    for row in np.unique(np.linspace(0, len(result.video_ids) - 1, NUM_CAPTIONED).round().astype(int)):
        picture = ""
        if inputs.gallery is not None:
            clip = inputs.gallery[inputs.retrieval.video_ids.index(result.video_ids[row])]
            picture = _image(film_strip(clip), f"frames of {html.escape(result.video_ids[row])}")
        written, own = (html.escape(texts[0]) for texts in (result.captions[row], result.references[row]))
        rows.append(f"<figure class='hit'>{picture}<figcaption>“{written}”<br>its own: “{own}”</figcaption></figure>")
    note = (
        f"The model describes clips that it has not seen: {len(rows)} at equal distances in the gallery, whether the"
        f" captions are right or not. Over all {len(result.video_ids)} clips, compared with their own captions:"
        f" {describe_metrics(result.metrics)}."
    )
    return _section("Captions", note, f"<div class='hits'>{''.join(rows)}</div>")


def _answering(rows: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    if not rows:
        return ""
    types = next(iter(rows.values()))
    counts = ["questions", *(str(of_type["questions"]) for of_type in types.values())]
    cells = [[name, *(row[kind]["accuracy"] for kind in types)] for name, row in rows.items()]
    note = (
        "Percentage of right answers, by the first word of the question. Questions that begin with “where” or “which”"
        " have another answer when the clip is played backward. The question alone: the most frequent training answer"
        " to the same question, the best that a model can do that never sees a clip."
    )
    return _section("Questions", note, _table(["", *types], [counts, *cells]))


def _queries(result: RetrievalResult) -> np.ndarray:
    """Returns evenly spaced captions, of those with a time-reversed twin and of those without."""
    order = np.argsort([not group for group in result.groups], kind="stable")
    return order[np.unique(np.linspace(0, len(order) - 1, NUM_QUERIES).round().astype(int))]


def _graph(pictures: Pictures | None) -> str:
    if pictures is None:
        return ""
    num_frames = pictures.video.shape[1]
    blocks = []
    for video, weights, caption in zip(pictures.video, pictures.adjacency, pictures.captions, strict=True):
        kept = 100.0 * np.count_nonzero(weights) / _pairs_in_band(weights.shape[0], num_frames)
        image = _image(draw_edges(video, weights), f"graph edges over the frames of: {html.escape(caption)}")
        blocks.append(
            f"<h3>“{html.escape(caption)}”</h3><div class='wide'>{image}</div>"
            f"<p class='note'>{kept:.0f} % of the pairs in the same or in neighbouring frames have an edge.</p>"
        )
    note = (
        "Every patch is a node. Edges connect it to similar patches of its own and of the neighbouring frames. The"
        " pictures show only the patches of each frame that change most, with their two strongest edges to the next"
        " frame, because the patches of a still background are all similar."
    )
    maps = [
        _figure(draw_adjacency(weights, num_frames), "adjacency heat map", f"“{html.escape(caption)}”")
        for weights, caption in list(zip(pictures.adjacency, pictures.captions, strict=True))[:2]
    ]
    map_note = (
        "The adjacency matrices of two of these graphs. Each square shows the edges between the patches of two frames;"
        " there are none between frames that are not neighbours."
    )
    return _section("The graph between frames", note, *blocks) + _section("Adjacency", map_note, _pair(maps))


def _pairs_in_band(nodes: int, num_frames: int) -> int:
    return (3 * num_frames - 2) * (nodes // num_frames) ** 2


def _similarities(inputs: ReportInputs) -> str:
    named = {"frames in order": inputs.retrieval.similarity}
    if inputs.shuffled is not None:
        named["frames shuffled"] = inputs.shuffled.similarity
    values = np.concatenate([scores.ravel() for scores in named.values()])
    limits = float(values.min()), float(values.max())
    maps = [
        _figure(draw_similarity(scores, limits), f"video-text similarities, {name}", name)
        for name, scores in named.items()
    ]
    note = "Every clip against every caption, in the order of the gallery. Matching pairs are on the diagonal."
    return _section("Video-text similarity", note, _pair(maps))


def _curves(inputs: ReportInputs) -> str:
    if not inputs.curves:
        return ""
    note = "Faint lines are single steps, strong lines their running mean, over both stages."
    image = _image(draw_curves(inputs.curves), "training curves")
    return _section("Training", note, f"<div class='wide'>{image}</div>")


def _ablation(results: Results) -> str:
    if not results:
        return ""
    tables = [
        f"<h3>{title[0].upper()}{title[1:]}</h3>{_table(list(rows[0]), [list(row.values()) for row in rows])}"
        for title, rows in ablation_tables(results).items()
    ]
    curves = {"R@1, validation": "t2v_r1", "Right one of two, validation": "twin_accuracy"}
    panels = {title: learning_curves(results, figure) for title, figure in curves.items()}
    image = _image(draw_seed_curves(panels), "learning curves of the ablation")
    note = (
        "Clips of crowded_shapes. Means over seeds with their standard errors; the gain is over the arm in the last"
        " column, paired by seed. Second stages start from the first stage of the full model."
    )
    return _section("Ablation", note, *tables, f"<div class='wide'>{image}</div>")


def _counts(counts: Mapping[str, Any]) -> str:
    if not counts:
        return ""
    return _section("Data and run", "", _table([], [[label, value] for label, value in counts.items()]))


def _section(title: str, note: str, *blocks: str) -> str:
    intro = f"<p class='note'>{note}</p>" if note else ""
    return f"<section><h2>{title}</h2>{intro}{''.join(blocks)}</section>"


def _table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    head = f"<thead><tr>{''.join(f'<th>{cell}</th>' for cell in heads)}</tr></thead>" if heads else ""
    body = "".join(
        f"<tr><th>{html.escape(str(first))}</th>{''.join(f'<td>{_cell(value)}</td>' for value in rest)}</tr>"
        for first, *rest in rows
    )
    return f"<div class='wide'><table>{head}<tbody>{body}</tbody></table></div>"


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    return f"{value:.1f}" if isinstance(value, float) else html.escape(str(value))


def _pair(figures: Iterable[str]) -> str:
    return f"<div class='pair'>{''.join(figures)}</div>"


def _figure(png: bytes, description: str, caption: str, kind: str = "") -> str:
    return f"<figure class='{kind}'>{_image(png, description)}<figcaption>{caption}</figcaption></figure>"


def _image(png: bytes, description: str) -> str:
    return f'<img src="data:image/png;base64,{base64.b64encode(png).decode()}" alt="{description}">'
