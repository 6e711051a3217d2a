"""Writes a model under the names of the original, or as a folder that Hugging Face's `transformers` loads."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors.numpy

from stgt_jax.config import ModelConfig
from stgt_jax.convert.names import HUGGING_FACE, from_reference_name
from stgt_jax.convert.own import under_reference_names, without_reference_name
from stgt_jax.convert.stored_tensor import StoredTensor
from stgt_jax.errors import STGTError

Naming = Literal["reference", "hugging_face"]


def export_weights(
    folder: Path, naming: Naming, config: ModelConfig, parameters: Mapping[str, StoredTensor], vocab: bytes
) -> dict[str, Any]:
    """Writes FOLDER/model.safetensors, float32, and vocab.txt; for Hugging Face also config.json.

    Args:
      folder: where to write; created if it does not exist.
      naming: "reference", the names of the STGT release and of LAVIS, or "hugging_face",
        `Blip2ForImageTextRetrieval`'s.
      config: of the model.
      parameters: by their paths in the tree.
      vocab: content of vocab.txt.

    Returns:
      "tensors", the number written; "left_out", names of the reference for which there is no place; "notes".

    Raises:
      STGTError: Hugging Face's class cannot hold the model, as it has a graph.
    """
    if naming == "hugging_face" and config.graph.variant != "none":
        raise STGTError(
            "Hugging Face's BLIP-2 has no graph, and this model has one; write it with --names reference, which the"
            " release's code reads"
        )
    tensors = under_reference_names(str(folder), config, parameters)
    left_out = without_reference_name(config, parameters)
    notes: list[str] = []
    if naming == "hugging_face":
        tensors, no_place = _hugging_face(tensors)
        left_out += no_place
        if config.ln_vision_epsilon != config.vision.norm_epsilon:
            notes.append(
                f"Hugging Face has one epsilon for the ViT and the LayerNorm after it: the latter's"
                f" {config.ln_vision_epsilon:g} becomes {config.vision.norm_epsilon:g} there"
            )
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {name: np.array(tensor.read(), np.float32, order="C") for name, tensor in tensors.items()}
    safetensors.numpy.save_file(arrays, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "vocab.txt").write_bytes(vocab)
    if naming == "hugging_face":
        (folder / "config.json").write_text(json.dumps(_hugging_face_config(config), indent=2) + "\n")
    return {"tensors": len(tensors), "left_out": left_out, "notes": notes}


def _hugging_face(tensors: Mapping[str, StoredTensor]) -> tuple[dict[str, StoredTensor], list[str]]:
    named: dict[str, StoredTensor] = {}
    left_out = []
    for name, tensor in tensors.items():
        if name.endswith(".attn.v_bias"):
            continue  # joined with q_bias
        if name.endswith(".attn.q_bias"):
            query, value = tensor, tensors[name.replace("q_bias", "v_bias")]
            joined = _joined_biases(query, value)
            name, tensor = name.replace("q_bias", "qkv.bias"), joined
        there = from_reference_name(HUGGING_FACE, name)
        if there is None:
            left_out.append(name)
        else:
            named[there] = tensor
    return named, left_out


def _joined_biases(query: StoredTensor, value: StoredTensor) -> StoredTensor:
    """The biases of queries, keys (zero) and values as one."""
    (width,) = query.shape

    def read() -> np.ndarray:
        return np.concatenate([query.read(), np.zeros(width, np.float32), value.read()])

    return StoredTensor((3 * width,), query.dtype, read)


def _hugging_face_config(config: ModelConfig) -> dict[str, Any]:
    vision, qformer = config.vision, config.qformer
    return {
        "architectures": ["Blip2ForImageTextRetrieval"],
        "model_type": "blip-2",
        "dtype": "float32",
        "image_text_hidden_size": config.embed_dim,
        "num_query_tokens": qformer.num_queries,
        "vision_config": {
            "model_type": "blip_2_vision_model",
            "hidden_act": "gelu",
            "hidden_size": vision.width,
            "image_size": vision.image_size,
            "intermediate_size": vision.mlp_dim,
            "layer_norm_eps": vision.norm_epsilon,
            "num_attention_heads": vision.num_heads,
            "num_hidden_layers": vision.depth,
            "patch_size": vision.patch_size,
            "qkv_bias": True,
        },
        "qformer_config": {
            "model_type": "blip_2_qformer",
            "cross_attention_frequency": qformer.cross_attention_freq,
            "encoder_hidden_size": vision.width,
            "hidden_act": "gelu",
            "hidden_size": qformer.width,
            "intermediate_size": qformer.mlp_dim,
            "layer_norm_eps": qformer.norm_epsilon,
            "max_position_embeddings": qformer.max_text_length,
            "num_attention_heads": qformer.num_heads,
            "num_hidden_layers": qformer.depth,
            "use_qformer_text_input": True,
            "vocab_size": qformer.vocab_size,
        },
    }
