"""The last step of the demo: measures retrieval, with frames in order and shuffled, captions, and draws the report.

`stgt report` repeats it on a finished demo, for example to add the table of `stgt ablate --workdir WORKDIR/ablation`.
"""

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from data_pipeline.config import TEST_SPLIT, DataConfig
from data_pipeline.loader import eval_batches, num_videos
from data_pipeline.storage import local_path
from experiments.ablation.summary import read_ablation
from experiments.evaluate import captioning, retrieval
from experiments.pictures import Pictures, collect_pictures
from experiments.report import ReportInputs, read_curve, write_report
from experiments.results import read_results
from experiments.steps import read_json
from stgt_jax.api import load
from stgt_jax.config import GenerationConfig, ModelConfig
from stgt_jax.encoder import Encoder
from stgt_jax.errors import STGTError
from stgt_jax.eval.captioning import CaptioningResult
from stgt_jax.eval.retrieval import RetrievalResult, format_time_order

STAGES = ("stage1", "stage2")
BATCH = 32  # clips encoded at a time
K_TEST = 32  # candidates of each query that are re-ranked
REPORT_NAME = "report.html"


def measure_and_draw(workdir: str | Path) -> dict[str, Any]:
    """Measures the model of a demo's second stage, and writes WORKDIR/report.html.

    Returns:
      `RetrievalResult.to_dict` for "frames in order" and "frames shuffled", `CaptioningResult.to_dict` for "captions",
      and the text table "time_order_table".

    Raises:
      STGTError: the folder holds no demo with a trained second stage.
    """
    workdir = local_path(workdir)
    checkpoint, shards = workdir / STAGES[-1], workdir / "shards"
    for folder in (checkpoint, shards):
        if not folder.is_dir():
            raise STGTError(f"'{workdir}' is no finished demo, it has no folder {folder.name}; run `stgt demo` first")
    measure = functools.partial(retrieval, checkpoint, shards, split=TEST_SPLIT, k_test=K_TEST, batch_size=BATCH)
    results = {"frames in order": measure(), "frames shuffled": measure(shuffle_frames=True)}
    captions = captioning(
        checkpoint, shards, split=TEST_SPLIT, generation=GenerationConfig("greedy", min_length=0), batch_size=BATCH
    )
    write_report(workdir / REPORT_NAME, _inputs(workdir, results, captions))
    figures: dict[str, Any] = {name: result.to_dict() for name, result in results.items()}
    return figures | {"captions": captions.to_dict(), "time_order_table": format_time_order(results)}


def _inputs(workdir: Path, results: Mapping[str, RetrievalResult], captions: CaptioningResult) -> ReportInputs:
    model = load(workdir / STAGES[-1], batch_size=BATCH)
    data = DataConfig(shards=str(workdir / "shards"))
    counts = {
        "training clips": num_videos(data, "train"),
        "test clips": num_videos(data, TEST_SPLIT),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(model.params)),
        **_seconds(workdir),
    }
    return ReportInputs(
        retrieval=results["frames in order"],
        shuffled=results["frames shuffled"],
        gallery=_gallery(data, model.config, results["frames in order"].video_ids),
        pictures=_pictures(data, model.encoder),
        captions=captions,
        answering=_answering(workdir),
        curves={stage: read_curve(workdir / stage / "metrics.jsonl") for stage in STAGES},
        ablation=read_ablation(workdir / "ablation" / "results"),
        counts=counts,
    )


def _answering(workdir: Path) -> dict[str, Any]:
    """Returns the accuracies in the results files of `stgt eval qa`, WORKDIR/qa/test.json and test_shuffled.json."""
    files = {"frames in order": "test.json", "frames shuffled": "test_shuffled.json"}
    found = {
        name: read_results(workdir / "qa" / file) for name, file in files.items() if (workdir / "qa" / file).exists()
    }
    controls = next(iter(found.values()))["controls"] if found else {}
    return {name: content["accuracy"] for name, content in found.items()} | controls


def _gallery(data: DataConfig, config: ModelConfig, video_ids: tuple[str, ...]) -> np.ndarray:
    """Returns the clips, uint8 [V, T, H, W, 3], in the order of `video_ids`."""
    clips: dict[str, np.ndarray] = {}
    for batch in _test_batches(data, config):
        for video_id, video in zip(batch["video_id"], batch["video"], strict=True):
            clips.setdefault(video_id, video)
    return np.stack([clips[video_id] for video_id in video_ids])


def _pictures(data: DataConfig, encoder: Encoder) -> Pictures | None:
    batches = _test_batches(data, encoder.model.config)
    first = next(batches)
    batches.close()  # type: ignore[attr-defined]  # a generator with open workers
    return collect_pictures(encoder, first)


def _test_batches(data: DataConfig, config: ModelConfig) -> Iterator[dict[str, np.ndarray]]:
    size = config.vision.image_size
    return eval_batches(data, TEST_SPLIT, BATCH, num_frames=config.num_frames, image_size=size)


def _seconds(workdir: Path) -> dict[str, str]:
    """Returns the seconds of the demo's finished steps."""
    files = {name: workdir / "steps" / f"{name}.json" for name in ("clips", "shards", *STAGES)}
    return {f"{name}, seconds": f"{read_json(file)['seconds']:.0f}" for name, file in files.items() if file.exists()}
