"""The ablation: its processes, what it measures, its tables, and that it continues where it was stopped."""

import functools
import json
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from made_up_results import ablation_result
from scipy import stats

from data_pipeline.config import DataConfig
from data_pipeline.crowded_shapes import sample_crowds
from experiments.ablation import ablate, measure
from experiments.ablation.arms import ARMS, first_stages
from experiments.ablation.side_by_side import Task, run_side_by_side
from experiments.ablation.summary import format_ablation, paired_difference, read_ablation
from experiments.steps import write_json
from stgt_jax.config import ModelConfig, VisionConfig
from stgt_jax.errors import STGTError

SIZES = {"num_train": 8, "num_val": 2, "num_test": 6}


def write_results(folder: Path, *results: dict[str, Any]) -> Path:
    for content in results:
        write_json(folder / f"{content['arm']}_{content['seed']}.json", content)
    return folder


def test_every_second_stage_follows_the_full_first_stage() -> None:
    assert first_stages(["none", "csal", "unweighted"]) == {"full": ["csal"], "none": [], "unweighted": []}
    assert first_stages(["none"]) == {"none": []}
    compared = [arm.compared_with for arm in ARMS.values() if arm.compared_with]
    assert set(compared) <= ARMS.keys() and len(compared) > 3


def test_gain_is_paired_by_seed_over_the_seeds_of_both(tmp_path: Path) -> None:
    full, unweighted = [61.0, 63.0, 65.0, 70.0], [60.0, 61.0, 66.0]
    folder = write_results(
        tmp_path,
        *(ablation_result("full", seed, r1=r1) for seed, r1 in enumerate(full)),
        *(ablation_result("unweighted", seed, r1=r1) for seed, r1 in enumerate(unweighted)),
    )
    results = read_ablation(folder)
    gain, error, p_value = paired_difference(results, "full", "unweighted", ("similarity", "t2v_r1"))
    differences = np.array([1.0, 2.0, -1.0])
    assert gain == pytest.approx(2 / 3) and error == pytest.approx(differences.std(ddof=1) / 3**0.5)
    assert p_value == pytest.approx(stats.ttest_rel(full[:3], unweighted).pvalue)
    table = format_ablation(results)
    assert f"{gain:+.1f} ± {error:.1f}" in table and "64.8 ± 1.9" in table  # the mean of all four
    assert list(results) == ["unweighted", "full"]


def test_one_seed_has_no_error_and_arms_without_a_graph_no_row_of_it(tmp_path: Path) -> None:
    table = format_ablation(read_ablation(write_results(tmp_path, ablation_result("none", 0, r1=12.5))))
    assert "12.5" in table and "±" not in table and "the graph" not in table
    table = format_ablation(read_ablation(write_results(tmp_path, ablation_result("unweighted", 0, r1=14.0))))
    assert "+1.5" in table and "nan" not in table and "the graph" in table


def test_results_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    folder = write_results(tmp_path / "a", ablation_result("full", 0), ablation_result("none", 0, settings="b"))
    with pytest.raises(STGTError, match=r"full_0\.json' and .*none_0\.json' are of trainings with other settings"):
        read_ablation(folder)
    folder = write_results(tmp_path / "b", ablation_result("full", 0) | {"fields": {"model.num_frames": 3}})
    with pytest.raises(STGTError, match=r"full_0\.json' was trained with {'model.num_frames': 3}"):
        read_ablation(folder)
    write_json(tmp_path / "c" / "other.json", {"task": "retrieval"})
    with pytest.raises(STGTError, match=r"other\.json' holds no result of an ablation"):
        read_ablation(tmp_path / "c")


def test_unknown_arm_is_named_before_anything_is_made(error_of, tmp_path: Path) -> None:
    complaint = error_of("ablate", "--workdir", str(tmp_path / "new"), "--arms", "ful,csal")
    assert complaint == "--arms: unknown arm 'ful'; did you mean 'full'?"
    assert "--model.graph.variant is set by this command itself" in error_of(
        "ablate", "--workdir", str(tmp_path / "new"), "--variant", "full"
    )
    assert not (tmp_path / "new").exists()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ablate.Ablation:
    folder = tmp_path_factory.mktemp("ablation")
    made = ablate.Ablation(folder, folder / "results", SIZES, {})
    ablate.make_data(made)
    return made


def test_tracked_patches_show_the_shape_that_evaluation_shows_there(data: ablate.Ablation) -> None:
    encoder: Any = SimpleNamespace(
        model=SimpleNamespace(config=ModelConfig(num_frames=6, vision=VisionConfig(image_size=64, patch_size=8)))
    )
    crowds = sample_crowds(0, **SIZES)["test"]
    clips = measure._clips(encoder, DataConfig(shards=str(data.shards)), "test")
    seen = 0
    for crowd, clip in zip(crowds, clips, strict=True):
        objects = measure._objects(crowd, 6, 8, 12).reshape(6, 8, 8)
        patches = clip.reshape(6, 8, 8, 8, 8, 3).transpose(0, 1, 3, 2, 4, 5).reshape(6, 8, 8, 64, 3).astype(float)
        brightness = patches.max(axis=(3, 4))
        assert brightness[(objects == 0) | (objects == 1)].min() > 120 > np.median(brightness)
        seen += (objects == 0).any()
    assert seen >= 5  # the first of the two shapes is in view


def test_targets_are_split_between_the_own_pair_the_same_caption_and_others() -> None:
    rng = np.random.default_rng(0)
    text = rng.normal(size=(4, 8)).astype(np.float32)
    text[2] = text[0]
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    encoder: Any = SimpleNamespace(
        embed_videos=lambda clips: text[:, None], encode_texts=lambda ids, mask: text, params={"temperature": 0.1}
    )
    batch = {
        "valid": np.ones(4, bool), "video": np.zeros((4, 1)), "input_ids": np.zeros((4, 2)),
        "attention_mask": np.ones((4, 2)), "caption": np.array(["a", "b", "a", "c"], object),
    }  # fmt: skip
    figures = measure._of_batch(encoder, batch, 5.0)
    assert figures["target_own"].shape == (2,) and figures["effective_pairs"].shape == (4,)
    np.testing.assert_allclose(figures["target_own"], figures["target_same"], rtol=1e-5)
    for name in ("target", "probability"):
        total = sum(figures[f"{name}_{kind}"] for kind in ("own", "same", "others"))
        np.testing.assert_allclose(total, 1.0, rtol=1e-5)
    np.testing.assert_allclose(figures["similarity_same"], 1.0, rtol=1e-5)


def write_core(path: Path) -> None:
    print("working")
    time.sleep(1.0)
    path.write_text(json.dumps(sorted(os.sched_getaffinity(0))))


def fail() -> None:
    print("before", file=sys.stderr)
    raise STGTError("the disk is full")


@pytest.mark.slow
def test_tasks_run_each_on_a_core_of_its_own_and_one_that_fails_is_named(tmp_path: Path) -> None:
    tasks = [Task(str(i), functools.partial(write_core, tmp_path / f"{i}.json"), tmp_path / f"{i}.log") for i in (0, 1)]
    tasks.append(Task("bad", fail, tmp_path / "logs" / "bad.log"))
    with pytest.raises(STGTError, match=r"bad: failed; the reason is at the end of .*bad\.log"):
        run_side_by_side(tasks, 2)
    ran = [json.loads((tmp_path / f"{i}.json").read_text()) for i in (0, 1)]
    cores = sorted(os.sched_getaffinity(0))
    assert all(len(own) == 1 for own in ran) and {own[0] for own in ran} == set(cores[:2])
    assert (tmp_path / "0.log").read_text() == "working\n"
    assert (tmp_path / "logs" / "bad.log").read_text() == "before\nstgt: error: the disk is full\n"


def note_and_sleep(path: Path) -> None:
    path.write_text(str(os.getpid()))
    time.sleep(600)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_tasks_end_with_the_process_that_started_them(tmp_path: Path, number: int) -> None:
    task = Task("sleeper", functools.partial(note_and_sleep, tmp_path / "pid"), tmp_path / "log.txt")
    parent = multiprocessing.get_context("spawn").Process(target=run_side_by_side, args=([task], 1))
    parent.start()
    until = time.monotonic() + 60
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert time.monotonic() < until
        time.sleep(0.1)
    os.kill(parent.pid or 0, number)
    parent.join(30)
    child = Path("/proc", (tmp_path / "pid").read_text())
    while child.exists() and "zombie" not in (child / "status").read_text():
        assert time.monotonic() < until
        time.sleep(0.1)
