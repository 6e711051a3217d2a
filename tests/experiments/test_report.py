"""The HTML report: self-contained, complete for what it is given, and its pictures' choice of edges."""

import dataclasses
import html.parser
import re

import jax
import numpy as np
import pytest
from made_up_results import ablation_result
from models_for_tests import tiny

from experiments.pictures import Pictures, collect_pictures, film_strip, patch_motion, strongest_edges
from experiments.report import ReportInputs, read_curve, write_report
from stgt_jax.config import GenerationConfig, GraphConfig
from stgt_jax.encoder import Encoder
from stgt_jax.errors import STGTError
from stgt_jax.eval.captioning import CaptioningResult
from stgt_jax.eval.retrieval import RetrievalResult
from stgt_jax.models.stgt import STGT

VOID = {"meta", "img", "br"}


class Parser(html.parser.HTMLParser):
    """Collects tags and links, and checks that every tag is closed in order."""

    def __init__(self):
        super().__init__()
        self.open, self.links, self.tags, self.text = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.links += [value for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def parse(path):
    parser = Parser()
    parser.feed(path.read_text(encoding="utf-8"))
    assert parser.open == []
    return parser


def make_result(num_videos=8, captions=None, groups=None):
    scores = np.random.default_rng(0).normal(size=(num_videos, num_videos)).astype(np.float32)
    return RetrievalResult(
        similarity=scores,
        text_to_video=scores + 0.5,
        video_to_text=scores + 0.5,
        video_of_text=np.arange(num_videos),
        video_ids=tuple(f"clip{i}.mp4" for i in range(num_videos)),
        captions=captions or tuple(f"caption {i}" for i in range(num_videos)),
        groups=groups or ("g", "g", *[""] * (num_videos - 2)),
        k_test=32,
    )


def moving_square(num_frames=4, size=32):
    """A bright square, one patch of 8 pixels, that goes one patch to the right a frame, on a still background."""
    video = np.full((num_frames, size, size, 3), 40, np.uint8)
    for frame in range(num_frames):
        video[frame, 8:16, 8 * frame : 8 * frame + 8] = 250
    return video


def square_graph(video, grid=4):
    """The patches' own colours as nodes, made far from parallel: bright ones are like bright ones alone."""
    bright = video[..., 0].reshape(len(video), grid, 8, grid, 8).mean(axis=(2, 4)).reshape(-1) > 100
    nodes = np.stack([bright, ~bright], axis=1).astype(np.float32)
    frame = np.arange(len(video)).repeat(grid**2)
    return np.where(abs(frame[:, None] - frame[None]) <= 1, nodes @ nodes.T, 0.0).astype(np.float32)


@pytest.fixture(scope="module")
def full_inputs():
    video = moving_square()
    pictures = Pictures(np.stack([video, video]), np.stack([square_graph(video)] * 2), ("one <b>", "two"))
    curve = [{"step": i, "loss_contrastive": 1.0 / i, "accuracy_t2v": 0.5} for i in range(1, 80)]
    curve.append({"step": 79, "validation/t2v_r1": 12.0})
    result = make_result()
    return ReportInputs(
        retrieval=result,
        shuffled=make_result(),
        gallery=np.stack([video] * 8),
        pictures=pictures,
        curves={"stage1": curve, "stage2": curve},
        captions=CaptioningResult(
            result.video_ids[:3],
            (("a <b>",), ("c",), ("d",)),
            np.zeros((3, 1)),
            (("a <b>",), ("e",), ("f", "g")),
            GenerationConfig(),
        ),
        answering={"frames in order": {"all": {"questions": 3, "accuracy": 66.7}}},
        ablation={"full": {0: ablation_result("full", 0), 1: ablation_result("full", 1)}},
        counts={"clips": 8, "note": "a & b"},
    )


@pytest.fixture(scope="module")
def full_page(full_inputs, tmp_path_factory):
    return parse(write_report(tmp_path_factory.mktemp("report") / "new" / "report.html", full_inputs))


def test_page_is_self_contained(full_page):
    assert all(link.startswith("data:image/png;base64,") for link in full_page.links)
    assert not {"link", "script", "iframe"} & {tag for tag, _ in full_page.tags}
    assert not re.search(r"url\(|@import|https?:", "".join(full_page.text))


def test_page_has_every_picture_and_section(full_page):
    queries, hits, clips, captioned = 6, 5, 2, 3
    assert len(full_page.links) == queries * hits + captioned + 2 * clips + 2 + 2  # two similarities, two of curves
    text = "".join(full_page.text)
    for title in ("Retrieval", "Does it see time?", "Retrieved clips", "Captions", "Questions",
                  "The graph between frames", "Adjacency", "Video-text similarity", "Training", "Ablation",
                  "Data and run"):  # fmt: skip
        assert title in text
    assert "a & b" in text and "“a <b>”" in text
    assert "“one <b>”" in text  # escaped: it came out as text, not as a tag


def test_only_the_right_clips_are_framed(full_page, full_inputs):
    framed = sum(attrs.get("class") == "hit right" for _, attrs in full_page.tags)
    scores = full_inputs.retrieval.text_to_video
    queries = [0, 1, 3, 4, 6, 7]  # six even steps through eight captions
    assert framed == sum((scores[:, c] > scores[c, c]).sum() < 5 for c in queries)


def test_parts_without_input_are_left_out(tmp_path):
    page = parse(write_report(tmp_path / "report.html", ReportInputs(make_result(groups=("",) * 8))))
    text = "".join(page.text)
    assert len(page.links) == 1  # the similarity matrix
    assert "Retrieval" in text
    assert not any(title in text for title in ("see time", "Retrieved clips", "Adjacency", "Training", "Ablation"))


def test_missing_figures_of_an_ablation_are_dashes(tmp_path):
    one = ablation_result("full", 0)
    before = parse(write_report(tmp_path / "report.html", ReportInputs(make_result(), ablation={"full": {0: one}})))
    one["similarity"]["t2v_r5"] = None  # as NaN comes back from JSON
    after = parse(write_report(tmp_path / "report.html", ReportInputs(make_result(), ablation={"full": {0: one}})))
    assert after.text.count("-") == before.text.count("-") + 1


def test_gallery_of_another_size_is_an_error(tmp_path):
    inputs = ReportInputs(make_result(), gallery=np.zeros((3, 2, 8, 8, 3), np.uint8))
    with pytest.raises(STGTError, match="gallery holds 3 clips"):
        write_report(tmp_path / "report.html", inputs)


def test_curve_that_is_missing_or_damaged_is_an_error(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with pytest.raises(STGTError, match=r"metrics\.jsonl"):
        read_curve(path)
    path.write_text('{"step": 1, "loss": 2.0}\n')
    assert read_curve(path) == [{"step": 1, "loss": 2.0}]
    path.write_text("no json")
    with pytest.raises(STGTError, match="cannot be read"):
        read_curve(path)


def test_strongest_edges_follow_what_moves():
    video = moving_square()
    edges = strongest_edges(square_graph(video), video, sources=1, per_source=1)
    assert [(e.frame, e.patch, e.next_patch, e.weight) for e in edges] == [(t, 4 + t, 5 + t, 1.0) for t in range(3)]


def test_still_clip_and_single_frame_have_no_edges():
    still = np.repeat(moving_square()[:1], 4, axis=0)
    assert patch_motion(still, 4).max() == 0.0
    assert strongest_edges(square_graph(still), still) == []
    assert strongest_edges(square_graph(still[:1]), still[:1]) == []


def test_report_of_still_clips_and_single_frames_is_written(tmp_path):
    still = np.repeat(moving_square()[:1], 4, axis=0)
    for clip in (still, still[:1]):
        pictures = Pictures(clip[None], square_graph(clip)[None], ("still",))
        inputs = ReportInputs(make_result(), gallery=np.stack([clip] * 8), pictures=pictures)
        parse(write_report(tmp_path / "report.html", inputs))


def test_film_strip_is_a_png_of_any_number_of_frames():
    for frames in (1, 3, 8, 20):
        assert film_strip(np.zeros((frames, 8, 8, 3), np.uint8)).startswith(b"\x89PNG")


def make_batch(config):
    rng = np.random.default_rng(0)
    size = config.vision.image_size
    return {
        "video": rng.integers(0, 256, (3, 4, size, size, 3), dtype=np.uint8),
        "input_ids": rng.integers(5, 60, (3, 6)).astype(np.int32),
        "attention_mask": np.ones((3, 6), np.int32),
        "valid": np.array([True, False, True]),
        "caption": np.array(["a", "b", "another b"], dtype=object),
        "row": np.array([0, 2, 2]),
    }


def test_collected_graphs_are_those_of_the_valid_clips():
    config = tiny()
    model, batch = STGT(config), make_batch(config)
    params = jax.jit(model.init)(jax.random.key(0), batch["video"], batch["input_ids"], batch["attention_mask"])
    pictures = collect_pictures(Encoder(config, params["params"]), batch)
    nodes = 4 * config.vision.grid**2
    assert pictures.captions == ("a", "b / another b")
    assert pictures.adjacency.shape == (2, nodes, nodes)
    np.testing.assert_array_equal(np.diagonal(pictures.adjacency, axis1=1, axis2=2), 1.0)
    assert not pictures.adjacency[:, : nodes // 4, nodes // 2 :].any()  # beyond the band
    np.testing.assert_array_equal(pictures.video[1], batch["video"][2])


def test_model_without_graph_has_no_pictures():
    config = dataclasses.replace(tiny(), graph=GraphConfig(variant="none"))
    assert collect_pictures(Encoder(config, {}), make_batch(config)) is None
