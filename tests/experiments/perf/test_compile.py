"""`stgt compile`: what is counted in a program's text, the command from end to end, and mistakes that are one line."""

import functools
import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from recipe_words import recipe_with
from small_recipe import SMALL

from experiments.commands.main import main
from experiments.perf.compile import train_step
from experiments.perf.compile.chips import GIB, parse_topology
from experiments.perf.compile.collectives import DCN, ICI, device_groups, find_collectives
from experiments.perf.compile.flops import program_flops
from experiments.perf.compile.hlo import Array, Module, parse_hlo
from experiments.perf.compile.report import format_figures
from experiments.perf.compile.topology import find_topology
from experiments.perf.compile.traffic import hbm_bytes
from experiments.perf.compile.train_step import compile_recipe, refusal
from stgt_jax.config import MeshConfig
from stgt_jax.errors import STGTError
from stgt_jax.mesh import make_mesh, slice_of

TINY = [*SMALL, "--vocab_size=64", "--batch_size=4", "--scan_layers=true", "--vision.depth=3", "--fsdp=2"]
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu has no wheel for this platform"
)


@pytest.fixture(scope="module", autouse=True)
def equal_steps_are_compiled_once():
    compiler, programs = train_step._compile, {}

    def compile_once(lowered):
        text = lowered.as_text()
        if text not in programs:
            programs[text] = compiler(lowered)
        return programs[text]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_step, "_compile", compile_once)
        yield


@pytest.fixture
def error_of(error_of):
    """As everywhere, of `stgt compile`."""
    return functools.partial(error_of, "compile")


def module_of(function, *shapes) -> Module:
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return parse_hlo(jax.jit(function).lower(*arrays).compile().as_text())


def flops_of(function, *shapes) -> int:
    return program_flops(module_of(function, *shapes))


def test_products_count_two_operations_for_each_multiplication():
    assert flops_of(lambda a, b: a @ b, (6, 10), (10, 14)) == 2 * 6 * 10 * 14
    assert flops_of(lambda a, b: jnp.einsum("bik,bjk->bij", a, b), (3, 6, 10), (3, 14, 10)) == 2 * 3 * 6 * 10 * 14


def test_loops_count_as_often_as_they_run():
    def layers(x, weights):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]

    one = 2 * 8 * 16 * 16
    assert flops_of(layers, (8, 16), (5, 16, 16)) == 5 * one
    gradient = jax.grad(lambda weights, x: layers(x, weights).sum())
    assert flops_of(gradient, (5, 16, 16), (8, 16)) == 3 * 5 * one

    def nested(x, weights):
        return jax.lax.fori_loop(0, 3, lambda i, x: layers(x, weights), x)

    assert flops_of(nested, (8, 16), (5, 16, 16)) == 3 * 5 * one


def test_loop_of_a_tpu_program_runs_until_its_counter_reaches_the_length():
    text = """HloModule m

%condition (p: (s32[], f32[8,8])) -> pred[] {
  %length = s32[]{:T(128)} constant(39), backend_config={}
  %p = (s32[]{:T(128)}, f32[8,8]{1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %length), direction=LT
}

%body (p: (s32[], f32[8,8])) -> (s32[], f32[8,8]) {
  %p = (s32[], f32[8,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[8,8]{1,0} get-tuple-element(%p), index=1
  %y = f32[8,8]{1,0} dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %t = (s32[], f32[8,8]{1,0}) tuple(%i, %y)
}

ENTRY %main (a: (s32[], f32[8,8])) -> (s32[], f32[8,8]) {
  %a = (s32[], f32[8,8]{1,0}) parameter(0)
  ROOT %w = (s32[], f32[8,8]{1,0}) while(%a), condition=%condition, body=%body
}
"""
    module = parse_hlo(text)
    assert module.unknown_loops == 0 and program_flops(module) == 39 * 2 * 8**3


def test_loop_whose_length_is_not_known_is_told():
    module = module_of(lambda x: jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ x, x), (8, 8))
    assert program_flops(module) == 2 * 8**3 and module.unknown_loops == 1


def test_branches_all_count():
    def function(x, y):
        return jax.lax.cond(x.sum() > 0, lambda: x @ y, lambda: x @ y @ y)

    assert flops_of(function, (8, 8), (8, 8)) == 3 * 2 * 8**3


def test_convolution_counts_what_meets_no_padding():
    def conv(stride, padding):
        return lambda x, k: jax.lax.conv_general_dilated(
            x, k, stride, padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    shapes = (2, 8, 8, 3), (4, 4, 3, 5)
    assert flops_of(conv((4, 4), "VALID"), *shapes) == 2 * 2 * 2 * 2 * 4 * 4 * 3 * 5
    # Along a side of 8 with padding, the kernel's 3 elements meet 7, 8 and 7 of the input.
    assert flops_of(conv((1, 1), "SAME"), (1, 8, 8, 1), (3, 3, 1, 1)) == 2 * (7 + 8 + 7) ** 2


def test_batch_of_products_written_as_a_convolution_counts_as_products():
    """As TPU programs have it: the batch is a window as wide as the batch, dilated so that one element meets."""
    text = """HloModule m, num_partitions=1

ENTRY %main (a: bf16[16,8,4], b: bf16[16,6,4]) -> bf16[16,8,6] {
  %a = bf16[16,8,4]{2,1,0:T(8,128)(2,1)} parameter(0)
  %b = bf16[16,6,4]{2,1,0:T(8,128)(2,1)S(1)} parameter(1)
  ROOT %c = bf16[16,8,6]{2,1,0} convolution(%a, %b), window={size=16 stride=15 lhs_dilate=16}, dim_labels=0bf_0oi->0bf
}
"""
    module = parse_hlo(text)
    assert program_flops(module) == 2 * 16 * 8 * 6 * 4
    assert hbm_bytes(module) == 2 * (16 * 8 * 4 + 16 * 8 * 6)  # %b lies in vector memory, S(1)


def test_kernels_count_what_they_say_of_themselves():
    text = """HloModule m
ENTRY %main (a: f32[8,128]) -> (f32[8,128], s32[]) {
  %a = f32[8,128]{1,0} parameter(0)
  ROOT %k = (f32[8,128]{1,0}, /*index=1*/s32[]) custom-call(%a), custom_call_target="tpu_custom_call", \
backend_config={"custom_call_config":{"body":"AA","cost_estimate":{"flops":"1234","transcendentals":"5"}}}
}
"""
    module = parse_hlo(text)
    assert program_flops(module) == 1234
    assert module.computations["main"].root.arrays == (Array("f32", (8, 128)), Array("s32", ()))


def test_stacked_parameters_of_a_loop_are_read_layer_by_layer():
    weights, x = (32, 64, 64), (4, 64)
    moved = hbm_bytes(module_of(lambda w, x: jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0], weights, x))
    once = 4 * 32 * 64 * 64
    assert once <= moved < 4 * once  # each layer cut out and multiplied, never 32 times the whole


def test_copies_beside_other_operations_move_each_side_that_lies_in_hbm():
    """As TPU programs have them: on-chip memory is S(1), and a slice comes ahead of the operation that needs it."""
    text = """HloModule m

ENTRY %main (a: f32[64,8]) -> f32[16,8] {
  %a = f32[64,8]{1,0} parameter(0)
  %s = ((f32[64,8]{1,0}), f32[16,8]{1,0:S(1)}, s32[]{:S(2)}) slice-start(%a), slice={[16:32], [0:8]}
  %sd = f32[16,8]{1,0:S(1)} slice-done(%s)
  %out = (f32[16,8]{1,0}, f32[16,8]{1,0:S(1)}, u32[]{:S(2)}) copy-start(%sd)
  %outd = f32[16,8]{1,0} copy-done(%out)
  %back = (f32[16,8]{1,0:S(1)}, f32[16,8]{1,0}, u32[]{:S(2)}) copy-start(%outd)
  %backd = f32[16,8]{1,0:S(1)} copy-done(%back)
  %both = (f32[16,8]{1,0}, f32[16,8]{1,0}, u32[]{:S(2)}) copy-start(%outd)
  ROOT %bothd = f32[16,8]{1,0} copy-done(%both)
}
"""
    a_slice = 4 * 16 * 8
    assert hbm_bytes(parse_hlo(text)) == a_slice * (1 + 1 + 1 + 2)


@pytest.mark.parametrize(
    ("attributes", "groups"),
    [
        ("replica_groups={{0,1},{2,3}}, use_global_device_ids=true", [[0, 1], [2, 3]]),
        ("replica_groups=[2,2]<=[4], dimensions={0}", [[0, 1], [2, 3]]),
        ("replica_groups=[2,2]<=[2,2]T(1,0), to_apply=%add", [[0, 2], [1, 3]]),
        ("source_target_pairs={{0,1},{1,2}}", [[0, 1], [1, 2]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'b'}, dimensions={0}", [[0, 1], [2, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}, dimensions={0}", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}, dimensions={0}", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=4,'b'=1], device_ids=([2,2]T(1,0)) {'a'}, dimensions={0}", [[0, 2, 1, 3]]),
        ("replica_groups={}, to_apply=%add", [[0, 1, 2, 3]]),
    ],
)
def test_groups_of_devices_are_read_in_every_form(attributes, groups):
    assert device_groups(attributes, 4) == groups


def test_collectives_count_what_each_device_sends():
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("slice", "chip"))

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=P("slice", "chip"), out_specs=P("slice", "chip"))
    def function(x):  # [4, 16] on each device
        x = jax.lax.scan(lambda x, _: (jax.lax.psum(jnp.tanh(x), "slice") + x, None), x, length=5)[0]
        return jax.lax.all_gather(x, "chip").mean(0)

    found = find_collectives(module_of(function, (8, 32)), slices=[0, 0, 1, 1])
    reduced = next(c for c in found if c.kind == "all-reduce" and c.link == DCN)
    assert (reduced.group_size, reduced.times, reduced.sent_bytes) == (2, 5, 5 * 4 * 4 * 16)
    gathered = next(c for c in found if c.kind == "all-gather")
    assert (gathered.link, gathered.times, gathered.sent_bytes) == (ICI, 1, 4 * 4 * 16)
    assert found == sorted(found, key=lambda c: -c.sent_bytes)


def test_what_is_sent_between_slices_is_told_from_what_stays_within():
    text = """HloModule m, num_partitions=4

ENTRY %main (a: f32[8,16]) -> f32[8,16] {
  %a = f32[8,16]{1,0} parameter(0)
  %b = f32[8,16]{1,0} all-reduce(%a), channel_id=1, replica_groups={{0,1},{2,3}}, to_apply=%add
  %after-all = token[] after-all()
  %send = (f32[8,16]{1,0}, u32[], token[]) send(%b, %after-all), channel_id=2, is_host_transfer=true, \
frontend_attributes={_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  ROOT %send-done = token[] send-done(%send), channel_id=2, is_host_transfer=true
}
"""
    within, between = sorted(find_collectives(parse_hlo(text), slices=[0, 0, 1, 1]), key=lambda c: c.link, reverse=True)
    assert (within.link, within.kind, within.sent_bytes) == (ICI, "all-reduce", 4 * 8 * 16)
    assert (between.link, between.kind, between.sent_bytes) == (DCN, "all-reduce", 4 * 8 * 16)


def test_collective_that_works_beside_fusions_counts_once():
    """TPUs write it in a fusion that starts it, in each that runs meanwhile, and in one that ends it."""
    gather = (
        'all-gather(%p), channel_id=7, replica_groups=[1,4]<=[4], backend_config={"async_collective_fusion_config":{}}'
    )
    text = f"""HloModule m, num_partitions=4

%start (p: f32[8]) -> f32[32] {{
  %p = f32[8]{{0}} parameter(0)
  ROOT %g.1 = f32[32]{{0}} {gather}
}}

%done (p: f32[8], q: f32[32]) -> f32[32] {{
  %p = f32[8]{{0}} parameter(0)
  %q = f32[32]{{0}} parameter(1)
  ROOT %g.2 = f32[32]{{0}} {gather}
}}

ENTRY %main (a: f32[8]) -> f32[32] {{
  %a = f32[8]{{0}} parameter(0)
  %s = f32[32]{{0}} fusion(%a), kind=kCustom, calls=%start
  ROOT %d = f32[32]{{0}} fusion(%a, %s), kind=kCustom, output_to_operand_aliasing={{{{}}: (1, {{}})}}, calls=%done
}}
"""
    module = parse_hlo(text)
    (one,) = find_collectives(module, slices=[0] * 4)
    assert (one.kind, one.times, one.sent_bytes) == ("all-gather", 1, 3 * 4 * 8)
    assert hbm_bytes(module) == 4 * (8 + 32 + 8)  # the result is written at the start, and only handed on at the end


def test_collective_of_another_kind_of_core_counts():
    text = """HloModule m, num_partitions=4

%called (p: f32[8,16]) -> f32[2,16] {
  %p = f32[8,16]{1,0} parameter(0)
  ROOT %r = f32[2,16]{1,0} reduce-scatter(%p), channel_id=2, replica_groups={{0,1,2,3}}, dimensions={0}, to_apply=%add
}, execution_thread="sparsecore"

%async (p: f32[8,16]) -> f32[2,16] {
  %p = f32[8,16]{1,0} parameter(0)
  ROOT %c = f32[2,16]{1,0} custom-call(%p), custom_call_target="TODO(b/522284627)", called_computations={%called}
}, execution_thread="sparsecore"

ENTRY %main (a: f32[8,16]) -> f32[2,16] {
  %a = f32[8,16]{1,0} parameter(0)
  %start = ((), (), (s32[])) async-start(), async_execution_thread="sparsecore", calls=%async
  %update = ((f32[8,16]{1,0}), f32[2,16]{1,0}, (s32[])) async-update(%start, %a)
  ROOT %done = f32[2,16]{1,0} async-done(%update)
}
"""
    (one,) = find_collectives(parse_hlo(text), slices=[0] * 4)
    assert (one.kind, one.link, one.times, one.sent_bytes) == ("reduce-scatter", ICI, 1, 3 / 4 * 4 * 8 * 16)


def test_collective_that_is_called_on_another_core_counts():
    text = """HloModule m, num_partitions=4

%called (p: f32[8,16], q: token[]) -> f32[32,16] {
  %q = token[] parameter(1)
  %p = f32[8,16]{1,0} parameter(0)
  ROOT %g = f32[32,16]{1,0} all-gather(%p), channel_id=2, replica_groups={{0,1,2,3}}, dimensions={0}
}, execution_thread="sparsecore"

ENTRY %main (a: f32[8,16]) -> f32[32,16] {
  %a = f32[8,16]{1,0} parameter(0)
  %q = token[] after-all()
  %start = ((f32[8,16]{1,0}, token[]), f32[32,16]{1,0}) call-start(%a, %q), \
async_execution_thread="sparsecore", to_apply=%called
  ROOT %done = f32[32,16]{1,0} call-done(%start)
}
"""
    module = parse_hlo(text)
    (one,) = find_collectives(module, slices=[0] * 4)
    assert (one.kind, one.times, one.sent_bytes) == ("all-gather", 1, 3 * 4 * 8 * 16)
    assert hbm_bytes(module) == 4 * 16 * (8 + 32)


def test_groups_of_an_unknown_form_are_not_guessed():
    with pytest.raises(ValueError, match="replica_groups of an unknown form"):
        device_groups("replica_groups=ring(0,1,2,3), dimensions={0}", 4)


def test_refusal_of_the_compiler_is_one_line_with_its_figures():
    message = """RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. \
Used 38.40G of 15.75G hbm. Exceeded hbm capacity by 22.65G.

  Largest program allocations in hbm:

  1. Size: 8.00G
     Operator: op_name="jit(train_step)/qformer/dot_general" source_file="x.py"
     Shape: bf16[2048,8,257,1408]{3,2,1,0:T(8,128)(2,1)}
     Unpadded size: 8.00G
"""
    line = refusal(message)
    assert "needs 38.40G of the 15.75G" in line and "--mesh.fsdp" in line and "\n" not in line
    assert "bf16[2048,8,257,1408] of 8.00G (jit(train_step)/qformer/dot_general)" in line
    message = """RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required \
for HLO temporaries (56.00G) exceeds available HBM (15.75G). HLO module: jit_train_step.
See https://openxla.org/xla/errors/error_1000 for more details."""
    assert "needs 56.00G of the 15.75G" in (line := refusal(message)) and "\n" not in line
    assert refusal("INTERNAL: no\nmore") == "the TPU's compiler refuses the step: INTERNAL: no"


def test_topologies_count_their_chips():
    assert parse_topology("v5e:16x16") == ("v5e", 256) and parse_topology("tpu7x:4x4x4") == ("tpu7x", 64)


@needs_libtpu
def test_data_spans_the_slices_and_nothing_else_does():
    topology = find_topology("v5e:2x2", num_slices=2)
    assert topology.num_chips == 8
    mesh = make_mesh(MeshConfig(fsdp=2), topology.devices)
    assert mesh.shape["data"] == 4 and [slice_of(device) for device in mesh.devices.flat] == [0] * 4 + [1] * 4
    with pytest.raises(STGTError, match="data=1 does not divide by the 2 slices"):
        make_mesh(MeshConfig(fsdp=8), topology.devices)


@needs_libtpu
def test_device_has_a_share_of_its_chip():
    topology = find_topology("tpu7x:2x2x1")
    assert (topology.num_chips, len(topology.devices), topology.device.hbm_bytes) == (4, 8, 96 * GIB)
    topology = find_topology("v4:2x2x2")  # its two cores are one device
    assert (topology.num_chips, len(topology.devices), topology.device.hbm_bytes) == (8, 8, 32 * GIB)


@pytest.mark.slow
@needs_libtpu
def test_recipe_is_compiled_for_a_slice(tmp_path, capsys):
    path = tmp_path / "figures.json"
    argv = ["compile", "moving_shapes_stage1", "--topology", "v5e:2x2", "--text-length", "4", *TINY]
    assert main([*argv, "--json", str(path)]) == 0
    figures, text = json.loads(path.read_text()), capsys.readouterr().out
    assert figures["mesh"] == {"data": 2, "fsdp": 2, "sequence": 1, "tensor": 1}
    assert figures["topology"]["num_chips"] == figures["topology"]["num_devices"] == 4
    assert figures["memory"]["limit"] == 16 * GIB and figures["memory"]["fits"] and "\nfits\n" in text
    assert figures["parameters"]["trainable"] > 1000
    assert figures["parameters"]["frozen"] == (1 + 4) * 16  # the graph's table of positions
    assert figures["held_whole"] and max(one["bytes"] for one in figures["held_whole"]) <= 4 * 1024
    assert "MB of the state; the largest array is" in text
    assert 0.5 < figures["flops"]["ratio"] < 10 and figures["flops"]["loops_of_unknown_length"] == 0
    assert {one["link"] for one in figures["collectives"]} == {ICI}
    assert "all-reduce" in {one["kind"] for one in figures["collectives"]}
    roofline = figures["roofline"]
    assert roofline["seconds"] == max(roofline["bounds_seconds"].values()) > 0
    assert 0 < roofline["model_flops_share"] < 1 and "videos/s" in text


@pytest.mark.slow
@needs_libtpu
def test_step_from_cached_tokens_is_compiled_beside_the_one_from_frames(tmp_path, capsys):
    path = tmp_path / "figures.json"
    argv = ["compile", "moving_shapes_stage1", "--topology", "v5e:2x2", "--text-length", "4", *TINY]
    argv += ["--vision.freeze", "true", "--cached-tokens", "true"]
    assert main([*argv, "--json", str(path)]) == 0
    figures, text = json.loads(path.read_text()), capsys.readouterr().out
    frames, tokens = figures["frames"], figures["tokens"]
    for quantity in ("program", "model"):
        assert tokens["flops"][quantity] < frames["flops"][quantity]
    assert tokens["roofline"]["hbm_bytes"] < frames["roofline"]["hbm_bytes"]
    assert frames["input"]["bytes_per_clip"] == 2 * 16 * 16 * 3  # uint8 frames
    assert tokens["input"]["bytes_per_clip"] == 2 * (1 + 4) * 16 * 2  # bfloat16 tokens
    read = tokens["input"]["bytes_per_clip"] * tokens["roofline"]["videos_per_second"] / 4
    assert tokens["input"]["bytes_per_second"] == pytest.approx(read)
    ratio = tokens["roofline"]["videos_per_second"] / frames["roofline"]["videos_per_second"]
    assert f"cached tokens: {ratio:.2f} times the videos/s by these bounds" in text


def test_cached_tokens_need_a_frozen_encoder(error_of):
    words = ["moving_shapes_stage1", "--topology", "v5e:2x2", "--cached-tokens", "true"]
    assert "vision.freeze" in error_of(*words)


@pytest.mark.slow
@needs_libtpu
def test_step_that_does_not_fit_says_what_to_change():
    recipe = recipe_with("moving_shapes_stage1", TINY)
    figures = compile_recipe(recipe, "v5e:2x2", num_slices=1, text_length=4, hbm_limit=1000)
    assert not figures["memory"]["fits"]
    assert "does not fit: lower --train.batch_size, raise --mesh.fsdp" in format_figures(figures)


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (["paper_stage1", "--topology", "v5f:4x4"], "--topology=v5f:4x4: unknown TPU 'v5f'; did you mean 'v5"),
        (["paper_stage1", "--topology", "v5e-256"], "--topology=v5e-256: unknown TPU 'v5e-256'; did you mean 'v5e'"),
        (["paper_stage1", "--topology", "v5e:256"], "slices of this TPU are written v5e:AxB, at most v5e:16x16"),
        (["paper_stage1", "--topology", "v5e:8x32"], "are v5e:AxB, at most v5e:16x16; --num-slices takes several"),
        (["paper_stage1", "--topology", "v4:4x4"], "slices of this TPU are written v4:AxBxC, at most v4:16x16x16"),
        (["paper_stage1", "--topology", "v5e:2x2", "--num-slices", "0"], "--num-slices=0 must be greater than 0"),
        (["paper_stage1", "--topology", "v5e:2x2", "--text-length", "1"], "--text-length=1 must lie in [2,"),
        (["paper_stage1", "--topologie", "v5e:2x2"], "unknown option --topologie; did you mean '--topology'?"),
        (["paper_stage1"], "the following arguments are required: --topology"),
        (["paper_stage", "--topology", "v5e:2x2"], "unknown recipe 'paper_stage'; did you mean 'paper_stage"),
    ],
)
def test_mistake_is_one_line_that_names_it(error_of, argv, complaint):
    assert complaint in error_of(*argv)


@needs_libtpu
@pytest.mark.slow  # after a test that compiles: the first trace of a process also logs which kernel runs
@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (["v5e:3x5"], "--topology=v5e:3x5: libtpu knows no such slice"),
        (["v5e:2x2", "--mesh.data", "3"], "devices but there are 4; choose axes that multiply to it"),
        (["v5e:2x2", "--batch_size", "6"], "train.batch_size=6 does not divide by train.accumulation_steps=1 x 4"),
    ],
)
def test_what_does_not_suit_the_slice_is_one_line(error_of, argv, complaint):
    assert complaint in error_of("moving_shapes_stage1", "--topology", *argv)


def test_missing_compiler_is_named(error_of, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install libtpu" in error_of("moving_shapes_stage1", "--topology", "v5e:2x2")
