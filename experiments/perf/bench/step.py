"""Times a train step of a recipe, whole and by part, on random clips.

Each part is compiled and timed alone. In the whole step parts overlap and share memory, so the times of the parts need
not add up to that of the step.
"""

import math
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from experiments.perf.bench.device import Peak, describe_device, describe_run, measure_peak
from experiments.perf.bench.memory import Memory, free_memory, needed_memory
from experiments.perf.bench.parts import PARTS, Part
from experiments.perf.bench.timing import time_runs, with_backward
from experiments.recipes import Recipe
from experiments.tables import format_table, number
from stgt_jax.batch import Batch
from stgt_jax.checks import check
from stgt_jax.flops import model_flops
from stgt_jax.models.stgt import STGT
from stgt_jax.sharding import shard_batch
from stgt_jax.train.optimizer import make_optimizer
from stgt_jax.train.state import TrainState, abstract_state, init_state, merge_params, mesh_for
from stgt_jax.train.step import make_train_step

TEXT_LENGTH = 32  # tokens of a caption, the default of `stgt data build`
Figures = dict[str, Any]
FORWARD, BACKWARD = "forward", "forward + backward"


def bench_step(
    recipe: Recipe,
    *,
    repeats: int,
    text_length: int | None,
    cached_tokens: bool = False,
    peak: Peak | None = None,
) -> Figures:
    """Measures the train step of a recipe and its parts.

    Args:
      recipe: its model and its training are used.
      repeats: runs, of which the median counts.
      text_length: tokens of a caption; None for the default (`text_length_of`).
      cached_tokens: measure also a step that takes the tokens of a frozen ViT in place of frames.
      peak: of one device; measured by default.

    Returns:
      Figures for JSON: "device", "peak", "rows" of the parts and "step", the whole; "tokens_step", the whole with
      cached tokens, and "bytes_per_clip" of each. Times are seconds of a step with all its accumulation steps. FLOP/s
      are those of all devices together, and shares are relative to their peak.

    Raises:
      STGTError: a number is out of range, the batch does not divide by the devices, or the step needs more memory than
        is free.
    """
    text_length = text_length_of(recipe, text_length)
    check(repeats > 0, f"--repeats={repeats} must be greater than 0")
    objective = recipe.train.loss.objective
    check(
        objective == "alignment",
        f"train.loss.objective={objective}: the parts are those of alignment; --train.loss.objective alignment",
    )
    model = STGT(recipe.model)
    mesh = mesh_for(model, recipe.train)
    peak = peak or measure_peak(recipe.model.dtype)
    with jax.set_mesh(mesh):
        from_tokens = None
        if cached_tokens:
            check_frozen(recipe)
            from_tokens, _ = _time_whole(recipe, model, mesh, text_length, repeats, cached_tokens=True)
        whole, state = _time_whole(recipe, model, mesh, text_length, repeats)
        rows = _time_parts(recipe, model, mesh, state, text_length, repeats)
        rows.append({"part": "optimizer", "passes": "", "seconds": _time_optimizer(recipe, state, repeats)})
    flops = step_flops(recipe, text_length)
    seconds, peak_flops = whole["seconds"], peak.flops_per_second * mesh.size
    tokens_step = from_tokens and _with_shares(
        from_tokens, seconds, sum(step_flops(recipe, text_length, cached_tokens=True).values()), peak_flops
    )
    return {
        "device": describe_device(recipe.model.dtype, mesh.size),
        "peak": asdict(peak),
        "rows": [_with_shares(row, seconds, flops.get(row["part"]), peak_flops) for row in rows],
        "step": _with_shares(whole, seconds, sum(flops.values()), peak_flops)
        | {"videos_per_second": recipe.train.batch_size / seconds},
        "tokens_step": tokens_step,
        "bytes_per_clip": {name: _bytes_per_clip(recipe, name == "tokens") for name in ("frames", "tokens")},
    }


def _bytes_per_clip(recipe: Recipe, cached_tokens: bool) -> int:
    shape, dtype = video_shape(recipe, 1, cached_tokens=cached_tokens)
    return math.prod(shape) * jnp.dtype(dtype).itemsize


def check_frozen(recipe: Recipe) -> None:
    """Raises STGTError if the ViT is trained, so that its tokens cannot be cached."""
    vision = recipe.model.vision
    frozen = vision.freeze and not vision.open_blocks
    check(frozen, "--cached-tokens: the tokens of a ViT that is trained change; --vision.freeze true freezes it")


def text_length_of(recipe: Recipe, text_length: int | None) -> int:
    """Returns the tokens of a caption: `text_length`, or if it is None 32, or the model's maximum if that is less.

    Raises:
      STGTError: the model cannot read that length.
    """
    longest = recipe.model.qformer.max_text_length
    text_length = min(TEXT_LENGTH, longest) if text_length is None else text_length
    fits = 2 <= text_length <= longest
    check(fits, f"--text-length={text_length} must lie in [2, model.qformer.max_text_length={longest}]")
    return text_length


def video_shape(recipe: Recipe, clips: int, *, cached_tokens: bool) -> tuple[tuple[int, ...], Any]:
    """Returns shape and dtype of the frames in a batch, or of the ViT's tokens of them."""
    vision, frames = recipe.model.vision, recipe.model.num_frames
    if cached_tokens:
        return (clips, frames, vision.tokens_per_frame, vision.width), jnp.bfloat16
    return (clips, frames, vision.image_size, vision.image_size, 3), jnp.uint8


def _batch(recipe: Recipe, mesh: Mesh, size: int, text_length: int, *, cached_tokens: bool = False) -> Batch:
    """Returns a random batch with the shapes of the loader's; captions have the full length."""
    rng = np.random.default_rng(0)
    shape, dtype = video_shape(recipe, size, cached_tokens=cached_tokens)
    return shard_batch(
        {
            "video": rng.integers(0, 256, shape, dtype=np.uint8).astype(dtype),
            "input_ids": rng.integers(0, recipe.model.qformer.vocab_size, (size, text_length), dtype=np.int32),
            "attention_mask": np.ones((size, text_length), np.int32),
        },
        mesh,
    )


def _time_whole(
    recipe: Recipe, model: STGT, mesh: Mesh, text_length: int, repeats: int, *, cached_tokens: bool = False
) -> tuple[Figures, TrainState]:
    """Returns the row of the whole step, and the state after it."""
    name = "with cached tokens" if cached_tokens else "whole step"
    _say(name)
    train_step = cast(jax.stages.Wrapped, make_train_step(model, recipe.train, mesh))
    batch = _batch(recipe, mesh, recipe.train.batch_size, text_length, cached_tokens=cached_tokens)
    compiled = train_step.lower(abstract_state(model, recipe.train, mesh), batch).compile()
    memory = needed_memory(compiled)
    _check_fits(memory)
    state = init_state(model, recipe.train, mesh)

    def run() -> Any:
        nonlocal state
        state, metrics = compiled(state, batch)
        return state, metrics

    seconds = time_runs(run, repeats=repeats).seconds
    return {"part": name, "passes": "", "seconds": seconds, "temporary_bytes": memory.temporaries}, state


def _check_fits(memory: Memory) -> None:
    free = free_memory(jax.devices()[0])
    check(
        memory.total <= free,
        f"the step needs {memory.total / 1e9:.3g} GB on a device and {free / 1e9:.3g} GB are free; lower"
        " --train.batch_size, or raise --train.accumulation_steps",
    )


def _time_parts(
    recipe: Recipe, model: STGT, mesh: Mesh, state: TrainState, text_length: int, repeats: int
) -> list[Figures]:
    """Returns a row for each part. A part runs on a microbatch, with the outputs of earlier parts as inputs."""
    steps = recipe.train.accumulation_steps
    arrays: dict[str, Any] = dict(_batch(recipe, mesh, recipe.train.batch_size // steps, text_length))
    with_gradient: set[str] = set()  # names of the arrays that depend on trained parameters
    rows = []
    for part in PARTS:
        _say(part.name)
        inputs = {name: arrays[name] for name in part.reads}
        differentiable = (
            _params(state.params, part, used=True),
            {name: inputs.pop(name) for name in part.reads if name in with_gradient},
        )
        constant = (merge_params(_params(state.params, part, used=False), state.frozen), inputs)
        passes = BACKWARD if jax.tree.leaves(differentiable) else FORWARD
        outputs, seconds = _time_part(_function(part, recipe, model), passes, differentiable, constant, repeats)
        arrays |= outputs
        with_gradient |= set(part.outputs) if passes == BACKWARD else set()
        rows.append({"part": part.name, "passes": passes, "seconds": seconds * steps})
    return rows


def _time_part(
    function: Callable[[Any, Any], Any], passes: str, differentiable: Any, constant: Any, repeats: int
) -> tuple[dict[str, Any], float]:
    """Returns (outputs, seconds of a run)."""
    program = jax.jit(with_backward(function) if passes == BACKWARD else function)
    compiled = program.lower(differentiable, constant).compile()
    seconds = time_runs(lambda: compiled(differentiable, constant), repeats=repeats).seconds
    outputs = compiled(differentiable, constant)
    return outputs[0] if passes == BACKWARD else outputs, seconds


def _function(part: Part, recipe: Recipe, model: STGT) -> Callable[[Any, Any], dict[str, Any]]:
    """Returns the part as a function of (parameters, inputs) that are differentiated and of those that are not."""

    def function(differentiable: Any, constant: Any) -> dict[str, Any]:
        params = merge_params(differentiable[0], constant[0])
        arrays = differentiable[1] | constant[1]
        return part.run(model, recipe.train.loss, params, arrays, jax.random.key(0))

    return function


def _params(params: Any, part: Part, *, used: bool) -> Any:
    """Returns the tree of the parameters that a part uses, or of all others."""
    return unflatten_dict({path: leaf for path, leaf in flatten_dict(params).items() if part.uses(path) == used})


def _time_optimizer(recipe: Recipe, state: TrainState, repeats: int) -> float:
    """Returns the seconds of an update. It is in place, as in the train step, and consumes the state."""
    _say("optimizer")
    optimizer = make_optimizer(recipe.train.optimizer, recipe.train.num_steps)

    def update(params: Any, opt_state: Any, gradients: Any) -> tuple[Any, Any]:
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    params, opt_state = state.params, state.opt_state
    gradients = jax.tree.map(jnp.zeros_like, params)
    compiled = jax.jit(update, donate_argnums=(0, 1)).lower(params, opt_state, gradients).compile()

    def run() -> Any:
        nonlocal params, opt_state
        params, opt_state = compiled(params, opt_state, gradients)
        return params, opt_state

    return time_runs(run, repeats=repeats).seconds


def step_flops(recipe: Recipe, text_length: int, *, cached_tokens: bool = False) -> dict[str, int]:
    """Returns the FLOPs of the model in a step, by part; with cached tokens there is no ViT."""
    without = {"vit"} if cached_tokens else set()
    if recipe.train.loss.objective == "captioning":
        without |= {"encode_text", "match", "losses"}
    steps, frames = recipe.train.accumulation_steps, recipe.model.num_frames
    flops = model_flops(recipe.model, batch=recipe.train.batch_size // steps, frames=frames, text_length=text_length)
    return {part: count.total * steps for part, count in flops.items() if part not in without}


def _with_shares(row: Figures, step_seconds: float, flops: int | None, peak_flops: float) -> Figures:
    speed = None if flops is None else flops / row["seconds"]
    return row | {
        "share_of_step": row["seconds"] / step_seconds,
        "flops": flops,
        "flops_per_second": speed,
        "peak_flops_share": None if speed is None else speed / peak_flops,
    }


def format_figures(figures: Figures) -> str:
    """Returns the text for the figures of `bench_step`."""
    step = figures["step"]
    table = [
        {
            "part": row["part"],
            "passes": row["passes"],
            "ms": number(row["seconds"], ",.2f", scale=1e3),
            "% of step": number(row["share_of_step"], ".1f", scale=100),
            "GFLOP": number(row["flops"], ",.1f", scale=1e-9),
            "GFLOP/s": number(row["flops_per_second"], ",.1f", scale=1e-9),
            "% of FLOP/s": number(row["peak_flops_share"], ".1f", scale=100),
        }
        for row in [*figures["rows"], step, *filter(None, [figures["tokens_step"]])]
    ]
    text = (
        f"{describe_run(figures)}\n\n{format_table(table, left=('part', 'passes'))}\n\n"
        f"{step['videos_per_second']:,.1f} videos/s;"
        f" temporaries: {step['temporary_bytes'] / 1e6:,.1f} MB on each device"
    )
    return text + (_describe_tokens(figures) if figures["tokens_step"] else "")


def _describe_tokens(figures: Figures) -> str:
    size, ratio = figures["bytes_per_clip"], figures["step"]["seconds"] / figures["tokens_step"]["seconds"]
    return (
        f"\nwith cached tokens {ratio:.2f} times the videos/s; a clip is read as {size['tokens'] / 1e6:,.2f} MB in"
        f" place of {size['frames'] / 1e6:,.2f}"
    )


def _say(name: str) -> None:
    print(f"{name} ...", file=sys.stderr, flush=True)
