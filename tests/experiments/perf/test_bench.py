"""`stgt bench`: what its tables hold, what does not fit or is mistaken, and that the parts are parts of the model."""

import functools
import json
import re
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from recipe_words import recipe_with
from small_recipe import SMALL, SMALL_STEP

from experiments.commands.main import main
from experiments.perf.bench.device import Peak, measure_peak
from experiments.perf.bench.graph_attention import NODE_MEAN, SIM_THRESHOLD, bench_graph_attention
from experiments.perf.bench.graph_attention_figures import PASSES, Row, add_ratios, growth, growth_exponent
from experiments.perf.bench.parts import PARTS
from experiments.perf.bench.settings import GraphAttentionSettings
from experiments.perf.bench.timing import time_runs
from experiments.tables import format_table
from stgt_jax.models.stgt import STGT, init_params
from stgt_jax.ops.graph_attention import adjacency
from stgt_jax.train.state import split_params

PEAK = Peak(1e11, 1e10)
TINY = ["--width", "16", "--num-heads", "2", "--patches", "4", "--repeats", "2", "--implementations", "dense,banded"]


@pytest.fixture
def quick_peak(monkeypatch):
    for module in ("graph_attention", "step"):
        monkeypatch.setattr(f"experiments.perf.bench.{module}.measure_peak", lambda dtype: PEAK)


@pytest.fixture
def error_of(error_of):
    """As everywhere, of `stgt bench`."""
    return functools.partial(error_of, "bench")


def test_graph_attention_table_has_every_implementation_at_every_length(quick_peak, tmp_path, capsys):
    path = tmp_path / "figures.json"
    assert main(["bench", "graph-attention", *TINY, "--frames", "1,2", "--json", str(path)]) == 0
    figures, text = json.loads(path.read_text()), capsys.readouterr().out
    assert figures["device"]["jax"] == jax.__version__ and jax.__version__ in text.splitlines()[0]

    rows = {(row["implementation"], row["frames"], row["passes"]): row for row in figures["rows"]}
    assert rows.keys() == {(name, frames, p) for name in ("dense", "banded") for frames in (1, 2) for p in PASSES}
    for (_, frames, passes), row in rows.items():
        dense = rows["dense", frames, passes]
        assert row["repeats"] == 2 and row["note"] == ""
        assert row["time_to_dense"] == pytest.approx(row["seconds"] / dense["seconds"])
        assert row["memory_to_dense"] == pytest.approx(row["temporary_bytes"] / dense["temporary_bytes"])
        assert row["peak_flops_share"] > 0 and row["peak_bytes_share"] > 0
        assert re.search(rf"^{row['implementation']} +{frames} ", text, re.MULTILINE)
    # The same operations are counted for both: shares of the peak are as the times.
    dense, banded = rows["dense", 2, PASSES[0]], rows["banded", 2, PASSES[0]]
    assert banded["peak_flops_share"] * banded["time_to_dense"] == pytest.approx(dense["peak_flops_share"])
    assert {(row["implementation"], row["passes"]) for row in figures["growth"]} == {(k[0], k[2]) for k in rows}


def test_what_does_not_fit_is_in_the_table_with_its_size():
    settings = GraphAttentionSettings(
        frames=(2,), implementations=("banded",), dtype="float32", width=16, num_heads=2, patches=4
    )
    figures = bench_graph_attention(settings, memory_limit=1, peak=PEAK)
    for row in figures["rows"]:
        assert re.fullmatch(r"does not fit \([\d.e-]+ GB\)", row["note"])
        assert row["seconds"] is None and row["time_to_dense"] is None and row["temporary_bytes"] > 0


@pytest.mark.slow
def test_whole_block_is_measured(quick_peak, tmp_path):
    path = tmp_path / "figures.json"
    argv = ["--implementations", "banded", "--frames", "1", "--block", "--dtype", "bfloat16", "--json", str(path)]
    assert main(["bench", "graph-attention", *TINY, *argv]) == 0
    figures = json.loads(path.read_text())
    assert [row["seconds"] > 0 for row in figures["rows"]] == [True, True]
    assert figures["growth"][0]["time_exponent"] is None  # one length has no slope
    assert figures["device"]["dtype"] == "bfloat16"


def test_sizes_a_kernel_cannot_take_are_a_note(monkeypatch):
    def refuse(*args, **options):
        raise ValueError("implementation='banded' needs more patches")

    monkeypatch.setattr("experiments.perf.bench.graph_attention.graph_attention", refuse)
    settings = GraphAttentionSettings(
        frames=(2,), implementations=("banded",), dtype="float32", width=16, num_heads=2, patches=4
    )
    notes = [row["note"] for row in bench_graph_attention(settings, peak=PEAK)["rows"]]
    assert notes == ["does not run: implementation='banded' needs more patches"] * 2


def test_about_half_the_pairs_have_an_edge():
    nodes = NODE_MEAN + jax.random.normal(jax.random.key(0), (1, 64, 1408))
    weights = adjacency(nodes, num_frames=1, sim_threshold=SIM_THRESHOLD)
    assert 0.4 < (weights != 0).mean() < 0.6


def test_growth_exponents_are_those_of_the_figures():
    frames = (4, 8, 32)
    rows = [Row("dense", t, PASSES[0], seconds=3.0 * t**2, temporary_bytes=10 * t**2) for t in frames]
    rows += [Row("banded", t, PASSES[0], seconds=5.0 * t, temporary_bytes=7 * t) for t in frames]
    rows += [Row("banded", 64, PASSES[0], note="does not fit (1 GB)")]
    dense, banded = growth(rows)
    assert (dense["time_exponent"], dense["memory_exponent"]) == pytest.approx((2.0, 2.0))
    assert (banded["time_exponent"], banded["memory_exponent"]) == pytest.approx((1.0, 1.0))
    assert growth_exponent([(4, 1.0)]) is None
    ratios = add_ratios(rows)
    assert ratios[5]["time_to_dense"] == pytest.approx(5 / (3 * 32)) and ratios[6]["time_to_dense"] is None


def test_slow_program_is_run_once():
    def run():
        time.sleep(0.01)

    assert time_runs(run, repeats=3).repeats == 3
    slow = time_runs(run, repeats=3, seconds_limit=0.001)
    assert slow.repeats == 1 and slow.seconds >= 0.01


def test_peak_is_measured():
    peak = measure_peak("float32", matrix_size=64, vector_bytes=2**16)
    assert peak.flops_per_second > 0 and peak.bytes_per_second > 0


def test_columns_are_aligned():
    text = format_table([{"name": "a", "ms": "1.0"}, {"name": "long", "ms": "10.0"}], left=("name",))
    assert text.splitlines() == ["name    ms", "a      1.0", "long  10.0"]


def test_step_is_measured_whole_and_by_part(run_stgt, tmp_path):
    path = tmp_path / "figures.json"
    done = run_stgt("bench", "step", "moving_shapes_stage1", "--repeats", "1", *SMALL_STEP, "--json", path)
    assert done.returncode == 0, done.stderr
    figures, text = json.loads(path.read_text()), done.stdout
    names = [row["part"] for row in figures["rows"]]
    assert names == [*(part.name for part in PARTS), "optimizer"]
    assert all(re.search(rf"^{name} ", text, re.MULTILINE) for name in [*names, "whole step"])
    step = figures["step"]
    assert step["videos_per_second"] == pytest.approx(8 / step["seconds"])
    assert step["flops"] == sum(row["flops"] or 0 for row in figures["rows"])
    assert step["peak_flops_share"] == pytest.approx(
        step["flops"] / step["seconds"] / figures["peak"]["flops_per_second"]
    )
    for row in figures["rows"]:
        assert row["share_of_step"] == pytest.approx(row["seconds"] / step["seconds"])
        assert row["passes"] == ("" if row["part"] == "optimizer" else "forward + backward")


@pytest.mark.slow
def test_loader_is_compared_with_decoding_and_its_memory_is_watched(run_stgt, tmp_path):
    made = run_stgt("data", "make", "--out", tmp_path / "clips", "--num-train", "4", "--num-test", "2")
    assert made.returncode == 0, made.stderr
    done = run_stgt(
        "bench", "data", "--captions", tmp_path / "clips" / "train" / "captions.csv", "--num-frames", "2",
        "--image-size", "32", "--batch-size", "2", "--seconds", "0.2", "--repeats", "1", "--step-milliseconds", "20",
        "--step-batch-size", "2", "--memory-records", "1000", "--json", tmp_path / "figures.json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    figures, text = json.loads((tmp_path / "figures.json").read_text()), done.stdout
    rows = figures["readers"]
    assert {"shards, JPEG", "shards, raw", "PyAV and swscale", "PyAV and Pillow"} <= rows.keys()
    peer = rows[figures["fastest_peer"]]
    for name, row in rows.items():
        assert row["clips_per_second"] > 0 and row["bytes_per_clip"] > 0
        assert row["times_fastest_peer"] == pytest.approx(row["clips_per_second"] / peer["clips_per_second"])
        assert re.search(rf"^{name} ", text, re.MULTILINE)
    assert 0 <= figures["input_wait"] < 1
    assert [sample["records"] for sample in figures["memory"]] == [*range(100, 1001, 100)]
    assert all(min(sample["megabytes"].values()) > 50 for sample in figures["memory"])


def test_step_from_cached_tokens_is_measured_beside_the_step_from_frames(run_stgt, error_of, tmp_path):
    path = tmp_path / "figures.json"
    words = ["step", "moving_shapes_stage1", "--repeats", "1", *SMALL_STEP, "--cached-tokens", "true"]
    assert "the tokens of a ViT that is trained change" in error_of(*words)
    done = run_stgt("bench", *words, "--vision.freeze", "true", "--json", path)
    assert done.returncode == 0, done.stderr
    figures = json.loads(path.read_text())
    step, from_tokens, size = figures["step"], figures["tokens_step"], figures["bytes_per_clip"]
    assert from_tokens["flops"] < step["flops"] and from_tokens["seconds"] > 0
    assert size == {"frames": 2 * 16 * 16 * 3, "tokens": 2 * 5 * 16 * 2}
    assert re.search(r"^with cached tokens ", done.stdout, re.MULTILINE) and "times the videos/s" in done.stdout


@pytest.mark.slow
def test_parts_use_the_parameters_they_say_and_together_all():
    """A part that is given NaN for every parameter it does not name gives none."""
    config = recipe_with("moving_shapes_stage1", [*SMALL, "--vocab_size=64", "--qformer.depth=2", "--variant=none"])
    model, loss = STGT(config.model), config.train.loss
    params = jax.jit(lambda: init_params(model, jax.random.key(0)))()
    batch = {
        "video": np.zeros((2, 2, 16, 16, 3), np.uint8),
        "input_ids": np.ones((2, 4), np.int32),
        "attention_mask": np.ones((2, 4), np.int32),
    }

    @jax.jit
    def run_parts(params, arrays):
        for part in PARTS:
            flat = flatten_dict(params).items()
            own = {path: leaf if part.uses(path) else jnp.full_like(leaf, jnp.nan) for path, leaf in flat}
            arrays |= part.run(model, loss, unflatten_dict(own), arrays, jax.random.key(0))
        return arrays

    arrays = run_parts(params, batch)
    for part in PARTS:
        leaves = jax.tree.leaves([arrays[name] for name in part.outputs])
        assert all(np.isfinite(leaf).all() for leaf in leaves), part.name
    trained, _ = split_params(params, config.model)
    assert all(any(part.uses(path) for part in PARTS) for path in flatten_dict(trained))


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (["graph-attention", "--implementations", "dense,bandde"], "got 'bandde'; did you mean 'banded'?"),
        (["graph-attention", "--frames", "4,x"], "argument --frames: expected int but got 'x'"),
        (["graph-attention", "--frames", "4,0"], "--frames=0 must be greater than 0"),
        (["graph-attention", "--repeats", "0"], "--repeats=0 must be greater than 0"),
        (["graph-attention", "--seconds-limit=-1"], "--seconds-limit=-1.0 must be greater than 0"),
        (["graph-attention", "--num-heads", "3"], "--num-heads=3 does not divide --width=1408"),
        (
            ["graph-attention", "--dtype", "float16"],
            "expected float32|bfloat16 but got 'float16'; did you mean 'bfloat16'",
        ),
        (["graph-attention", "--frame", "4"], "unknown option --frame; did you mean '--frames'?"),
        (["step", "moving_shapes"], "unknown recipe 'moving_shapes'; did you mean"),
        (["step", "moving_shapes_stage1", "--batchsize", "4"], "unknown option --batchsize; did you mean"),
        (["step", "--repeats", "0"], "--repeats=0 must be greater than 0"),
        (["step", "--text-length", "1"], "--text-length=1 must lie in [2, model.qformer.max_text_length=32]"),
        (["stpe"], "unknown command 'bench stpe'; did you mean 'bench step'?"),
    ],
)
def test_mistake_is_one_line_that_names_it(error_of, argv, complaint):
    assert complaint in error_of(*argv)
