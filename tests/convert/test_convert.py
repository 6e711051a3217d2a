"""Weights of other projects become a model: the goldens' numbers, a report of every tensor, and clear refusals."""

import dataclasses
import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from foreign import TABLE, VISION, eva, golden, options, save, stgt, write_vocab
from ml_dtypes import bfloat16
from oracles import needs_torch, needs_transformers

import stgt_jax as stgt_api
from experiments.commands.main import main
from stgt_jax.convert.interpolate import resample_positions
from stgt_jax.convert.options import Conversion
from stgt_jax.convert.source import open_source
from stgt_jax.errors import STGTError
from stgt_jax.exported import read_weights
from stgt_jax.loading import convert, write_converted
from stgt_jax.models.stgt import STGT

WEIGHTS, FILE, META = golden()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The goldens' weights as an EVA file, a checkpoint of the release, and its lost table; and a vocabulary."""
    folder = tmp_path_factory.mktemp("weights")
    save(folder / "eva.safetensors", eva(WEIGHTS))
    save(folder / "stgt.safetensors", stgt(WEIGHTS))
    save(folder / "table.safetensors", {TABLE: WEIGHTS[TABLE]})
    write_vocab(folder / "vocab.txt", META["V"] - 1)
    return folder


def converted(files, *names, **changes):
    paths = [files / f"{name}.safetensors" for name in names]
    return convert(paths, Conversion(**{"vocab": str(files / "vocab.txt"), **options(META), **changes}))


def run(config, params, method, *inputs):
    model = STGT(config)
    return jax.jit(lambda p, *x: model.apply({"params": p}, *x, method=method))(params, *inputs)


def assert_close(ours, theirs, tolerance=2e-5):
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= tolerance * np.abs(theirs).max()


def test_release_and_eva_files_give_the_goldens_numbers(files):
    whole = converted(files, "eva", "stgt", "table")
    video = jnp.asarray(FILE["input/video"].transpose(0, 2, 3, 4, 1))
    out = run(whole.model, whole.assembly.tree(), "encode_video", video)
    assert_close(out["query_states"], FILE["output/query_states"])
    texts = jnp.asarray(FILE["input/input_ids"]), jnp.asarray(FILE["input/attention_mask"])
    out = run(whole.model, whole.assembly.tree(), "encode_text", *texts)
    assert_close(out["text_state"], FILE["output/text_state"])


def test_every_tensor_is_accounted_for(files):
    report = converted(files, "eva", "stgt").assembly.report()
    contents = {"eva.safetensors": eva(WEIGHTS), "stgt.safetensors": stgt(WEIGHTS)}
    for source, (name, tensors) in zip(report["sources"], contents.items(), strict=True):
        left_out = [one for names in source["left_out"].values() for one in names]
        assert source["path"].endswith(name) and sorted(source["taken"] + left_out) == sorted(tensors)
    reasons = report["sources"][0]["left_out"] | report["sources"][1]["left_out"]
    assert reasons["the classifier"] == ["head.weight"]
    assert reasons["a buffer, the numbers from 0 on"] == ["Qformer.bert.embeddings.position_ids"]
    assert [note for note in report["notes"] if "published figures may not be met" in note]
    assert report["parameters"]["graph"] == {report["sources"][1]["path"]: 1, "none: zeros": 1}


def test_lost_table_is_zeros_or_seeded_noise(files):
    def table(**changes):
        return converted(files, "eva", "stgt", **changes).assembly.tree(["graph"])["graph"]["pos_2d_embed"]

    assert not table().any()
    noise = table(position_table="noise", seed=3)
    assert 0.015 < noise.std() < 0.025
    np.testing.assert_array_equal(noise, table(position_table="noise", seed=3))
    assert (noise != table(position_table="noise")).any()


def test_later_sources_replace_single_blocks_of_earlier_ones(files, tmp_path):
    name = "blocks.1.mlp.fc1.bias"
    save(tmp_path / "overlay.safetensors", {"graph_cross_model.ln_post.bias": WEIGHTS["graph_cross_model.ln_post.bias"],
                                            VISION + name: WEIGHTS[VISION + name] + 1})  # fmt: skip
    paths = [files / "eva.safetensors", files / "stgt.safetensors", tmp_path / "overlay.safetensors"]
    model = convert(paths, Conversion(vocab=str(files / "vocab.txt"), **options(META)))
    biases = model.assembly.tree(["vision"])["vision"]["blocks"]["mlp"]["up"]["bias"]
    np.testing.assert_array_equal(biases[0], WEIGHTS[VISION + "blocks.0.mlp.fc1.bias"])
    np.testing.assert_array_equal(biases[1], WEIGHTS[VISION + name] + 1)
    eva_report, _, overlay = model.assembly.report()["sources"]
    assert eva_report["replaced_by"] == {overlay["path"]: [name]} and name not in eva_report["taken"]


def test_half_precision_is_read(files, tmp_path):
    halves = {name: x.astype(np.float16 if "mlp" in name else bfloat16) for name, x in eva(WEIGHTS).items()}
    save(tmp_path / "eva.safetensors", halves)
    paths = [tmp_path / "eva.safetensors", files / "stgt.safetensors"]
    vision = convert(paths, Conversion(vocab=str(files / "vocab.txt"), **options(META))).assembly.tree(["vision"])
    for path, leaf in flatten_dict(vision).items():
        assert leaf.dtype == np.float32, path
    expected = halves["blocks.0.norm1.weight"].astype(np.float32)
    np.testing.assert_array_equal(vision["vision"]["blocks"]["norm1"]["scale"][0], expected)


def test_written_model_is_the_model_in_memory(files, tmp_path):
    whole = converted(files, "eva", "stgt")
    report = write_converted(whole, tmp_path / "model")
    assert json.loads((tmp_path / "model" / "conversion.json").read_text()) == json.loads(json.dumps(report))
    written, held = flatten_dict(read_weights(tmp_path / "model")), flatten_dict(whole.assembly.tree())
    assert written.keys() == held.keys()
    for path, leaf in held.items():
        np.testing.assert_array_equal(written[path], leaf)
    loaded = stgt_api.load(tmp_path / "model")
    direct = stgt_api.load([files / "eva.safetensors", files / "stgt.safetensors"],
                           vocab=str(files / "vocab.txt"), **options(META))  # fmt: skip
    frames = np.random.default_rng(0).integers(0, 255, (2, 4, META["patch"] * 14, META["patch"] * 14, 3), np.uint8)
    assert direct.config == loaded.config and loaded.config.vision.freeze
    np.testing.assert_array_equal(direct.encode_video(frames), loaded.encode_video(frames))
    np.testing.assert_array_equal(direct.encode_text("w1 w2"), loaded.encode_text(["w1 w2"]))


def test_own_model_is_a_source_too(files, tmp_path):
    write_converted(converted(files, "eva", "stgt"), tmp_path / "model")
    again = convert([tmp_path / "model"], Conversion())
    assert again.model == converted(files, "eva", "stgt").model
    read, held = flatten_dict(again.assembly.tree()), flatten_dict(read_weights(tmp_path / "model"))
    assert all(np.array_equal(read[path], leaf) for path, leaf in held.items())
    other = convert([tmp_path / "model", files / "table.safetensors"], Conversion())
    np.testing.assert_array_equal(other.assembly.tree(["graph"])["graph"]["pos_2d_embed"], WEIGHTS[TABLE])


def test_command_converts_exports_and_comes_back(files, tmp_path, capsys):
    words = ["weights", "convert", *(str(files / f"{name}.safetensors") for name in ("eva", "stgt", "table"))]
    given = [f"--{name.replace('_', '-')}={value}" for name, value in options(META).items()]
    assert main([*words, "--out", str(tmp_path / "model"), "--vocab", str(files / "vocab.txt"), *given]) == 0
    printed = capsys.readouterr().out
    assert "(EVA ViT): 30 tensors taken" in printed and "left out, the classifier: head.weight" in printed
    assert main(["weights", "export", str(tmp_path / "model"), str(tmp_path / "there")]) == 0
    source = open_source(tmp_path / "there", Conversion())
    aliases = ("Qformer.cls.predictions.decoder.weight", "Qformer.cls.predictions.decoder.bias")
    assert source.tensors.keys() == WEIGHTS.keys() - set(aliases)
    for name, tensor in source.tensors.items():
        np.testing.assert_array_equal(tensor.read(), WEIGHTS[name])
    assert main(["weights", "export", str(tmp_path / "model"), str(tmp_path / "x"), "--names", "hugging_face"]) == 2
    assert "Hugging Face's BLIP-2 has no graph" in capsys.readouterr().err


@pytest.mark.parametrize("names", [["stgt"], ["eva"]])
def test_half_a_model_is_refused_with_what_it_needs(files, names):
    mend = {"stgt": "give the file of a ViT too", "eva": "give the weights of a Q-Former too"}
    with pytest.raises(STGTError, match=mend[names[0]]):
        converted(files, *names)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"sim_threshold": None}, r"do not tell sim_threshold.*0\.5 for fine-tuned.*give --sim-threshold"),
        ({"graph_heads": None}, "do not tell graph_heads, for a width of 32; give --graph-heads"),
        ({"vision_heads": 5}, "vision.num_heads=5 does not divide"),
        ({"vocab": ""}, "come without a vocabulary.*--vocab FILE"),
        ({"vocab": "none.txt"}, r"vocabulary 'none\.txt' cannot be read"),
        ({"max_text_length": 600}, "is more than the [0-9]+ tokens that the model has positions for"),
        ({"image_size": 30}, "vision.image_size=30 is not a multiple"),
        ({"image_size": -1}, "image_size=-1 must be greater than 0"),
    ],
)
def test_what_the_files_do_not_tell_is_asked_for(files, changes, complaint):
    with pytest.raises(STGTError, match=complaint):
        converted(files, "eva", "stgt", **changes)


def test_vocabulary_of_another_size_is_refused(files, tmp_path):
    write_vocab(tmp_path / "vocab.txt", 30)
    with pytest.raises(STGTError, match="has 30 words, and the weights have rows for 59 and"):
        converted(files, "eva", "stgt", vocab=str(tmp_path / "vocab.txt"))


def test_missing_parameters_are_named_and_drawn_only_when_told_to(files, tmp_path):
    kept = {name: x for name, x in stgt(WEIGHTS).items() if not name.startswith(("itm_head", "temp", "Qformer.cls"))}
    kept = {name: x for name, x in kept.items() if ".intermediate.dense" not in name}
    save(tmp_path / "stgt.safetensors", kept)
    paths, given = [files / "eva.safetensors", tmp_path / "stgt.safetensors"], options(META)
    with pytest.raises(STGTError, match="no source has") as refused:
        convert(paths, Conversion(vocab=str(files / "vocab.txt"), **given))
    pattern = str(refused.value).split("--init-missing '")[1].rstrip("'")
    expected = "qformer/lm_dense,qformer/lm_norm,qformer/lm_bias,qformer/groups/*/text_mlp/up,itm_head,temperature"
    assert pattern == expected
    told = Conversion(vocab=str(files / "vocab.txt"), init_missing=tuple(pattern.split(",")), seed=1, **given)
    assembly = convert(paths, told).assembly
    assert "itm_head/kernel" in assembly.random and "temperature" in assembly.random
    tree, again = assembly.tree(), convert(paths, told).assembly.tree()
    assert tree["temperature"] == np.float32(0.07) and tree["itm_head"]["kernel"].std() > 0
    np.testing.assert_array_equal(tree["itm_head"]["kernel"], again["itm_head"]["kernel"])
    np.testing.assert_array_equal(tree["vision_proj"]["bias"], WEIGHTS["vision_proj.bias"])


def test_tensor_without_a_place_is_refused_by_name(files, tmp_path):
    more = {"extra.weight": np.ones(3, np.float32)}
    save(tmp_path / "stgt.safetensors", stgt(WEIGHTS) | more)
    paths = [files / "eva.safetensors", tmp_path / "stgt.safetensors"]
    given = {"vocab": str(files / "vocab.txt"), **options(META)}
    with pytest.raises(STGTError, match=r"1 tensors that have no place in the model: extra\.weight; .*--leave-out"):
        convert(paths, Conversion(**given))
    report = convert(paths, Conversion(leave_out=("extra.*",), **given)).assembly.report()
    assert report["sources"][1]["left_out"]["by --leave-out"] == ["extra.weight"]
    save(tmp_path / "stgt.safetensors", stgt(WEIGHTS) | {"Qformer.bert.encoder.layer.0.more.bias": np.ones(3)})
    with pytest.raises(STGTError, match=r"for which the model has no place.*layer\.0\.more\.bias"):
        convert(paths, Conversion(**given))


def test_wrong_shapes_ties_and_numbers_are_refused_by_name(files, tmp_path):
    given = {"vocab": str(files / "vocab.txt"), **options(META)}
    paths = [files / "eva.safetensors", tmp_path / "stgt.safetensors"]

    def refused(**changes):
        save(tmp_path / "stgt.safetensors", stgt(WEIGHTS) | {name.replace("__", "."): x for name, x in changes.items()})
        with pytest.raises(STGTError) as error:
            convert(paths, Conversion(**given)).assembly.tree()
        return str(error.value)

    assert "vision_proj.bias has the shape (3,)" in refused(vision_proj__bias=np.ones(3, np.float32))
    assert "itm_head.bias has the shape (2, 2)" in refused(itm_head__bias=np.ones((2, 2), np.float32))
    assert "temp holds numbers that are not finite" in refused(temp=np.array(np.nan, np.float32))
    decoder = {"Qformer__cls__predictions__decoder__weight": np.ones((60, 32), np.float32)}
    assert "decoder.weight is not the same as Qformer.bert.embeddings.word_embeddings.weight" in refused(**decoder)


def test_block_forty_of_vit_g_is_left_out(tmp_path):
    shapes = {"patch_embed.proj.weight": (1408, 3, 1, 1), "pos_embed": (1, 2, 1), "cls_token": (1, 1, 1)}
    shapes |= {f"blocks.{i}.norm1.weight": (1,) for i in range(40)}
    path = save(tmp_path / "eva.safetensors", {name: np.zeros(shape, np.float32) for name, shape in shapes.items()})
    left_out = open_source(path, Conversion()).left_out
    assert left_out == {"blocks.39.norm1.weight": "block 39: the first 39 blocks are used"}
    assert not open_source(path, Conversion(vision_depth=40)).left_out


def test_stage_two_of_blip2_and_unknown_files(tmp_path):
    save(tmp_path / "w.safetensors", {"query_tokens": np.ones((1, 2, 4)), "t5_proj.weight": np.ones((4, 4))})
    source = open_source(tmp_path / "w.safetensors", Conversion())
    assert source.kind == "BLIP-2" and source.left_out == {"t5_proj.weight": "of a language model"}
    save(tmp_path / "w.safetensors", {"conv1.weight": np.ones(3)})
    with pytest.raises(STGTError, match=r"of no known model; its tensors are conv1\.weight"):
        open_source(tmp_path / "w.safetensors", Conversion())
    (tmp_path / "w.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(STGTError, match=r"w\.safetensors' is missing or damaged"):
        open_source(tmp_path / "w.safetensors", Conversion())


def test_load_names_an_option_that_it_does_not_have(files):
    with pytest.raises(STGTError, match="load has no option 'sim_treshold'; did you mean 'sim_threshold'"):
        stgt_api.load([files / "eva.safetensors"], sim_treshold=0.5)
    with pytest.raises(STGTError, match="name at least one file"):
        stgt_api.load([])


def test_another_image_size_resamples_the_positions_alone(files):
    small, large = converted(files, "eva", "stgt", "table"), converted(files, "eva", "stgt", "table", image_size=84)
    assert large.model.vision.grid == 6 and large.preparation.resize == 84
    before, after = (flatten_dict(one.assembly.tree(), sep="/") for one in (small, large))
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {"vision/pos_embed", "graph/pos_2d_embed"}
    np.testing.assert_array_equal(after["vision/pos_embed"][:, 0], before["vision/pos_embed"][:, 0])
    assert len([note for note in large.assembly.notes if "was resampled (bicubic) from 17 to 37" in note]) == 2


@pytest.mark.slow
@needs_torch
@pytest.mark.parametrize(("old", "new"), [(16, 26), (16, 7), (4, 6), (5, 4), (1, 3)])
def test_positions_are_resampled_as_torch_does(old, new):
    import torch

    table = np.random.default_rng(0).normal(size=(1, 1 + old * old, 6)).astype(np.float32)
    patches = torch.tensor(table[:, 1:]).reshape(1, old, old, 6).permute(0, 3, 1, 2)
    resampled = torch.nn.functional.interpolate(patches, (new, new), mode="bicubic", align_corners=False)
    expected = resampled.permute(0, 2, 3, 1).reshape(1, new * new, 6).numpy()
    ours = resample_positions(table, new)
    assert_close(ours[:, 1:], expected)
    np.testing.assert_array_equal(ours[:, 0], table[:, 0])


BLIP2_SIZES = {
    "three layers": {"depth": 3, "width": 32, "hidden": 24, "heads": 2, "frequency": 2, "queries": 5, "side": 28},
    "wide": {"depth": 4, "width": 64, "hidden": 48, "heads": 4, "frequency": 2, "queries": 8, "side": 56},
    "sparse": {"depth": 6, "width": 48, "hidden": 32, "heads": 4, "frequency": 3, "queries": 3, "side": 42},
}


def blip2(size, eps=1e-6):
    import torch
    from transformers import Blip2Config, Blip2ForImageTextRetrieval

    config = Blip2Config(
        vision_config={"hidden_size": size["width"], "intermediate_size": 2 * size["width"], "num_hidden_layers": 2,
                       "num_attention_heads": 4, "image_size": size["side"], "patch_size": 14, "layer_norm_eps": eps},
        qformer_config={"vocab_size": 60, "hidden_size": size["hidden"], "num_hidden_layers": size["depth"],
                        "num_attention_heads": size["heads"], "intermediate_size": 2 * size["hidden"],
                        "encoder_hidden_size": size["width"], "cross_attention_frequency": size["frequency"],
                        "max_position_embeddings": 16, "use_qformer_text_input": True},
        text_config={"model_type": "opt", "vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 1, "ffn_dim": 16,
                     "num_attention_heads": 2, "word_embed_proj_dim": 16, "max_position_embeddings": 16},
        num_query_tokens=size["queries"], image_text_hidden_size=12,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Blip2ForImageTextRetrieval(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name.lower() and "weight" in name else 0.0, 0.2)
            if name.endswith("qkv.bias"):
                parameter[size["width"] : 2 * size["width"]] = 0.0
    return model


NO_HEAD = ("qformer/lm_*", "temperature")  # what Hugging Face's class does not have


@pytest.mark.slow
@needs_transformers
@pytest.mark.parametrize(("name", "shards"), [("three layers", False), ("wide", True), ("sparse", False)])
def test_hugging_face_blip2_gives_the_same_numbers(tmp_path, name, shards):
    import torch

    size = BLIP2_SIZES[name]
    theirs = blip2(size, eps=1e-6 if shards else 1e-5)
    theirs.save_pretrained(tmp_path / "hf", max_shard_size="30KB" if shards else "1GB")
    assert (tmp_path / "hf" / "model.safetensors.index.json").exists() == shards
    write_vocab(tmp_path / "hf" / "vocab.txt", 59)
    model = stgt_api.load(tmp_path / "hf", init_missing=NO_HEAD, num_frames=1, max_text_length=8)
    assert model.config.vision.norm_epsilon == model.config.ln_vision_epsilon == (1e-6 if shards else 1e-5)
    rng = np.random.default_rng(1)
    pixels = rng.normal(size=(3, size["side"], size["side"], 3)).astype(np.float32)
    ids, mask = rng.integers(5, 59, (3, 7)), np.ones((3, 7), np.int64)
    mask[1, 4:] = 0
    images, given = torch.tensor(pixels.transpose(0, 3, 1, 2)), (torch.tensor(ids), torch.tensor(mask))
    with torch.no_grad():
        contrastive = theirs(images, *given, use_image_text_matching_head=False)
        matching = theirs(images, *given, use_image_text_matching_head=True)
    out = run(model.config, model.params, "encode_video", jnp.asarray(pixels[:, None]))
    text = run(model.config, model.params, "encode_text", jnp.asarray(ids), jnp.asarray(mask))
    vision = model.params["ln_vision"]
    tokens = np.asarray(out["graph_tokens"], np.float64)
    centred = tokens - tokens.mean(-1, keepdims=True)
    normed = centred / np.sqrt(tokens.var(-1, keepdims=True) + model.config.ln_vision_epsilon)
    assert_close(normed * vision["scale"] + vision["bias"], contrastive.vision_model_output.last_hidden_state)
    assert_close(out["video_embed"], contrastive.image_embeds)
    assert_close(text["text_embed"], contrastive.text_embeds.reshape(3, -1))
    similarities = np.einsum("vqe,ce->vqc", out["video_embed"], text["text_embed"]).max(1)
    assert_close(similarities, contrastive.logits_per_image)
    logits = run(model.config, model.params, "match", out["graph_tokens"], jnp.asarray(ids), jnp.asarray(mask))
    assert_close(logits, matching.logits_per_image)


@pytest.mark.slow
@needs_transformers
def test_export_to_hugging_face_comes_back_exactly_and_loads_there(tmp_path):
    import torch
    from transformers import Blip2ForImageTextRetrieval

    theirs = blip2(BLIP2_SIZES["three layers"])
    theirs.save_pretrained(tmp_path / "hf")
    write_vocab(tmp_path / "hf" / "vocab.txt", 59)
    first = convert([tmp_path / "hf"], Conversion(init_missing=NO_HEAD, max_text_length=8))
    write_converted(first, tmp_path / "ours")
    assert main(["weights", "export", str(tmp_path / "ours"), str(tmp_path / "back"), "--names", "hugging_face"]) == 0
    loaded, info = Blip2ForImageTextRetrieval.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    for name, tensor in theirs.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], tensor, rtol=0, atol=0)
    again = convert([tmp_path / "back"], Conversion(init_missing=NO_HEAD, max_text_length=8))
    assert dataclasses.replace(again.model) == first.model


@pytest.mark.slow
@needs_transformers
def test_bias_of_keys_and_other_activations_are_refused(tmp_path):
    theirs = blip2(BLIP2_SIZES["three layers"])
    theirs.vision_model.encoder.layers[0].self_attn.qkv.bias.data += 1
    theirs.save_pretrained(tmp_path / "hf")
    with pytest.raises(STGTError, match=r"layers\.0\.self_attn\.qkv\.bias, the bias of the keys, is not zero"):
        open_source(tmp_path / "hf", Conversion())
    theirs.vision_model.encoder.layers[0].self_attn.qkv.bias.data[:] = 0
    theirs.config.vision_config.hidden_act = "relu"
    theirs.save_pretrained(tmp_path / "hf")
    with pytest.raises(STGTError, match="hidden_act is 'relu'"):
        open_source(tmp_path / "hf", Conversion())


@pytest.mark.slow
@needs_transformers
@pytest.mark.parametrize("old_names", [False, True])
def test_bert_starts_a_qformer_whose_text_side_is_bert(files, tmp_path, old_names):
    import torch
    from transformers import BertConfig, BertForPreTraining

    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 48}
    torch.manual_seed(0)
    bert = BertForPreTraining(BertConfig(vocab_size=59, max_position_embeddings=16, **sizes)).eval()
    with torch.no_grad():
        for parameter in bert.parameters():
            parameter.normal_(0.0, 0.2)
    state = dict(bert.state_dict())
    if old_names:
        state = {name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): x
                 for name, x in state.items()}  # fmt: skip
    (tmp_path / "bert").mkdir()
    torch.save(state, tmp_path / "bert" / "pytorch_model.bin")
    bert.config.save_pretrained(tmp_path / "bert")
    write_vocab(tmp_path / "bert" / "vocab.txt", 59)
    missing = ("qformer/query_tokens", "qformer/*/cross_attention*", "ln_vision", "vision_proj", "text_proj",
               "itm_head", "temperature")  # fmt: skip
    whole = convert([files / "eva.safetensors", tmp_path / "bert"],
                    Conversion(init_missing=missing, vision_heads=4, max_text_length=8))  # fmt: skip
    tree = whole.assembly.tree()
    ids, mask = np.random.default_rng(0).integers(5, 59, (3, 7)), np.ones((3, 7), np.int64)
    mask[2, 5:] = 0
    with torch.no_grad():
        theirs = bert.bert(torch.tensor(ids), torch.tensor(mask)).last_hidden_state[:, 0]
    ours = run(whole.model, tree, "encode_text", jnp.asarray(ids), jnp.asarray(mask))["text_state"]
    assert_close(ours, theirs)
    layer = tree["qformer"]["groups"]["layer_0"]
    np.testing.assert_array_equal(layer["query_mlp"]["up"]["kernel"], layer["text_mlp"]["up"]["kernel"])
    assert whole.model.qformer.vocab_size == 60
    (source,) = [one for one in whole.assembly.report()["sources"] if one["kind"] == "BERT"]
    assert {"the next-sentence head", "the pooler, which the Q-Former does not have"} <= source["left_out"].keys()
    assert any("token types" in note for note in source["notes"])


def test_model_warns_where_what_it_needs_is_random(files, tmp_path):
    save(tmp_path / "stgt.safetensors", {n: x for n, x in stgt(WEIGHTS).items() if not n.startswith("Qformer.cls")})
    given = {"vocab": str(files / "vocab.txt"), "init_missing": ["qformer/lm_*"], **options(META)}
    direct = stgt_api.load([files / "eva.safetensors", tmp_path / "stgt.safetensors"], **given)
    frames = np.zeros((4, direct.config.vision.image_size, direct.config.vision.image_size, 3), np.uint8)
    paths = [files / "eva.safetensors", tmp_path / "stgt.safetensors"]
    write_converted(convert(paths, Conversion(**given | {"init_missing": ("qformer/lm_*",)})), tmp_path / "model")
    for model in (direct, stgt_api.load(tmp_path / "model")):
        with pytest.warns(UserWarning, match=r"the result means nothing: qformer/lm_\w+.* is random"):
            model.caption(frames)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model.similarity(frames, "w1")
