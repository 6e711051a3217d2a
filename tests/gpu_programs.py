"""Compiles for NVIDIA GPUs that are not there, and prints the name of each program and the kernels it calls, as JSON.

A process of its own: with XLA's CUDA compiler on the path JAX looks for a GPU at every start.
"""

import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
from jax._src.cudnn import fused_attention_stablehlo as cudnn
from jax.experimental import topologies
from recipe_words import recipe_with

from experiments.perf.compile.train_step import abstract_batch
from stgt_jax.config import MeshConfig
from stgt_jax.mesh import make_mesh
from stgt_jax.models.stgt import STGT
from stgt_jax.ops.attention import attention
from stgt_jax.ops.graph_attention import graph_attention
from stgt_jax.sharding import replicated
from stgt_jax.train.state import abstract_state
from stgt_jax.train.step import make_train_step

# Without a GPU to try them on, XLA's own kernels for small products can have no tiles.
LIBRARY_PRODUCTS = {"xla_gpu_enable_triton_gemm": False}
HOPPER = Path(__file__).with_name("h100.txtpb").read_text()
# As far as the kernels are concerned: of all GPUs they run on, Ada's and the smaller Amperes have the least memory.
ADA = HOPPER.replace("232448", "101376").replace("9 feature_extension: ACCELERATED_FEATURES", "8 minor: 9")
SMALLER = [
    "--batch_size=8", "--num_frames=4", "--image_size=168", "--vision.width=176", "--vision.depth=1",
    "--vision.num_heads=2", "--vision.mlp_dim=352", "--graph.num_heads=2", "--qformer.width=64", "--qformer.depth=1",
    "--qformer.num_heads=2", "--qformer.mlp_dim=128",
]  # fmt: skip
CUDNN_VERSION = 91000  # of a library that need not be there either: only its kernels' names go into a program


def gpus(target: str, count: int) -> tuple[jax.Device, ...]:
    jax.devices()  # or the compiler is not registered yet
    form = {"target_config": target, "topology": f"1x1x{count}"}
    return tuple(topologies.get_topology_desc(platform="cuda", topology_name="gpu", **form).devices)


def with_backward(function, mesh, *shapes, dtype=jnp.bfloat16):
    def run(arrays, d_out):
        out, pull_back = jax.vjp(function, *arrays)
        return out, pull_back(d_out)

    arrays = [jax.ShapeDtypeStruct(shape, dtype, sharding=replicated(mesh)) for shape in shapes]
    return jax.jit(run).lower(arrays, arrays[0])


def graph_attention_program(mesh, dtype=jnp.bfloat16, head_dim=88):
    """At the published width, 8 frames."""
    nodes = (1, 8 * 256, 16, head_dim)

    def run(query, key, value, nodes):
        options = {"num_frames": 8, "sim_threshold": 0.1, "dropout_rate": 0.1, "dropout_rng": jax.random.key(0)}
        return graph_attention(query, key, value, nodes, **options)

    return with_backward(run, mesh, nodes, nodes, nodes, (1, 8 * 256, 16 * head_dim), dtype=dtype)


def float32_graph_attention_program(mesh):
    return graph_attention_program(mesh, jnp.float32)


def wide_graph_attention_program(mesh):
    return graph_attention_program(mesh, head_dim=128)


def frames_program(mesh):
    """A frame's 257 tokens at the published width."""
    return with_backward(attention, mesh, *[(1, 8, 257, 16, 88)] * 3)


def train_step_program(mesh):
    """Of the paper's second stage, smaller, with frames long enough for every kernel, split three ways."""
    recipe = recipe_with("paper_stage2", SMALLER)
    model = STGT(recipe.model)
    step, state = make_train_step(model, recipe.train, mesh), abstract_state(model, recipe.train, mesh)
    return step.lower(state, abstract_batch(recipe, mesh, text_length=16))


PROGRAMS = {  # with the GPU, how many of it and their mesh
    "graph attention": (graph_attention_program, HOPPER, 1, MeshConfig()),
    "graph attention on Ada": (graph_attention_program, ADA, 1, MeshConfig()),
    "graph attention with heads of width 128 on Ada": (wide_graph_attention_program, ADA, 1, MeshConfig()),
    "graph attention in float32 on Ada": (float32_graph_attention_program, ADA, 1, MeshConfig()),
    "frames": (frames_program, HOPPER, 1, MeshConfig()),
    "train step": (train_step_program, HOPPER, 8, MeshConfig(fsdp=2, sequence=2)),
}


def main() -> None:
    cudnn.check_cudnn_version = lambda: CUDNN_VERSION
    calls = {}
    for name, (program, target, count, axes) in PROGRAMS.items():
        mesh = make_mesh(axes, gpus(target, count))
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            text = program(mesh).compile(compiler_options=LIBRARY_PRODUCTS).as_text()
        calls[name] = re.findall(r'custom_call_target="([^"]*)"', text)
    print(json.dumps(calls))


if __name__ == "__main__":
    main()
