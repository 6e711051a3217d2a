"""The sizes of a model, read from the shapes of its weights; what shapes do not tell comes from elsewhere."""

import math
from collections.abc import Mapping
from typing import Any

from stgt_jax.config import GraphConfig, ModelConfig, QFormerConfig, VisionConfig
from stgt_jax.convert.options import Conversion
from stgt_jax.convert.stored_tensor import StoredTensor
from stgt_jax.errors import STGTError

# Heads of the published models, by the width of the part.
_VISION_HEADS, _QFORMER_HEADS, _GRAPH_HEADS = {1408: 16}, {768: 12}, {1408: 16}
_LAYER = "Qformer.bert.encoder.layer."


def model_config(
    tensors: Mapping[str, StoredTensor], options: Conversion, said: Mapping[str, Any]
) -> tuple[ModelConfig, dict[str, str]]:
    """Returns the config of the model that the weights make, and where each value came from that shapes do not tell.

    Args:
      tensors: by the reference's name.
      options: values that the user gives, which come first.
      said: values that a source's config.json gives.

    Raises:
      STGTError: a part is missing without which there is no model, or a value that nothing tells.
    """
    origins: dict[str, str] = {}

    def setting(option: str, default: Any, where: str) -> Any:
        """The user's value, else that of config.json, else the default."""
        if (given := getattr(options, option, None)) is not None:
            value, origins[option] = given, "the option"
        elif option in said:
            value, origins[option] = said[option], "config.json"
        elif default is not None:
            value, origins[option] = default, where
        else:
            raise STGTError(f"the weights do not tell {option}, {where}; give --{option.replace('_', '-')}")
        return value

    def heads(option: str, width: int, known: Mapping[int, int]) -> int:
        of_known = "the published model of that width" if width in known else f"for a width of {width}"
        return setting(option, known.get(width), of_known)

    vision_width, _, _, patch_size = _shape(tensors, "visual_encoder.patch_embed.proj.weight", _NO_VISION)
    grid = math.isqrt(_shape(tensors, "visual_encoder.pos_embed", _NO_VISION)[1] - 1)
    queries, words = "query_tokens", "Qformer.bert.embeddings.word_embeddings.weight"
    qformer_width = _shape(tensors, queries if queries in tensors else words, _NO_QFORMER)[-1]
    num_queries = tensors[queries].shape[1] if queries in tensors else QFormerConfig.num_queries
    has_graph = any(name.startswith("graph_cross_model.") for name in tensors)
    time_rows = _shape(tensors, "graph_cross_model.time_embed", "")[0] if has_graph else 8
    graph = GraphConfig(variant="none")
    if has_graph:
        graph = GraphConfig(
            num_layers=_count_layers(tensors, "graph_cross_model.resblocks."),
            num_heads=heads("graph_heads", vision_width, _GRAPH_HEADS),
            time_embed_rows=time_rows,
            variant=said.get("graph_variant", "full"),
            sim_threshold=setting(
                "sim_threshold", None, "the least cosine similarity of linked patches: 0.1 for pre-trained, 0.5 for"
                " fine-tuned weights of the release"
            ),
        )  # fmt: skip
    vision = VisionConfig(
        image_size=options.image_size or grid * patch_size,
        patch_size=patch_size,
        width=vision_width,
        depth=_count_layers(tensors, "visual_encoder.blocks."),
        num_heads=heads("vision_heads", vision_width, _VISION_HEADS),
        mlp_dim=_shape(tensors, "visual_encoder.blocks.0.mlp.fc1.weight", _NO_VISION)[0],
        norm_epsilon=setting("vision_norm_epsilon", 1e-6, "EVA and LAVIS"),
        freeze=True,
    )
    depth = _count_layers(tensors, _LAYER)
    crossing = [i for i in range(depth) if f"{_LAYER}{i}.crossattention.self.key.weight" in tensors]
    mlp_names = [f"{_LAYER}0.{part}.dense.weight" for part in ("intermediate_query", "intermediate")]
    mlp_name = next((name for name in mlp_names if name in tensors), mlp_names[0])
    qformer = QFormerConfig(
        vocab_size=_rows(tensors, words, QFormerConfig.vocab_size),
        max_text_length=_rows(
            tensors, "Qformer.bert.embeddings.position_embeddings.weight", QFormerConfig.max_text_length
        ),
        width=qformer_width,
        depth=depth,
        num_heads=heads("qformer_heads", qformer_width, _QFORMER_HEADS),
        mlp_dim=_shape(tensors, mlp_name, _NO_QFORMER)[0],
        num_queries=num_queries,
        cross_attention_freq=(
            crossing[1] - crossing[0] if len(crossing) > 1 else setting("cross_attention_freq", 2, "BLIP-2")
        ),
        norm_epsilon=setting("qformer_norm_epsilon", 1e-12, "BERT"),
    )
    config = ModelConfig(
        num_frames=options.num_frames or said.get("num_frames", time_rows),
        vision=vision,
        graph=graph,
        qformer=qformer,
        ln_vision_epsilon=setting("ln_vision_epsilon", 1e-5, "LAVIS"),
        embed_dim=_rows(tensors, "vision_proj.weight", ModelConfig.embed_dim),
    )
    return config, origins


_NO_VISION = "give the file of a ViT too, such as EVA's eva_vit_g.pth: BLIP-2 of LAVIS and STGT come without it"
_NO_QFORMER = "give the weights of a Q-Former too: BLIP-2's, or STGT's"


def _count_layers(tensors: Mapping[str, Any], prefix: str) -> int:
    """Returns one more than the highest layer number that follows `prefix` in the names; 0 where there is none."""
    numbers = {int(name[len(prefix) :].split(".")[0]) for name in tensors if name.startswith(prefix)}
    return max(numbers) + 1 if numbers else 0


def _shape(tensors: Mapping[str, StoredTensor], name: str, mend: str) -> tuple[int, ...]:
    if name not in tensors:
        raise STGTError(f"weight '{name}' is missing" + (f"; {mend}" if mend else ""))
    return tensors[name].shape


def _rows(tensors: Mapping[str, StoredTensor], name: str, default: int) -> int:
    return tensors[name].shape[0] if name in tensors else default
