"""The names that other projects give to the weights: one table for each, which is read in both directions.

Every table pairs a name there with *the reference's* name, that of the public STGT release; LAVIS' BLIP-2 has the same
names. `reference.py` pairs those with the parameters of this project. In a name, `{i}` is a layer's number; a name that
ends with a dot stands for all that begin with it.
"""

import re
from collections.abc import Iterable

Table = tuple[tuple[str, str], ...]  # (name there, name of the reference), the more special before the more general

EVA: Table = (
    ("cls_token", "visual_encoder.cls_token"),
    ("pos_embed", "visual_encoder.pos_embed"),
    ("patch_embed.proj.", "visual_encoder.patch_embed.proj."),
    ("blocks.{i}.", "visual_encoder.blocks.{i}."),
)

REFERENCE: Table = (
    ("visual_encoder.", "visual_encoder."),
    ("graph_cross_model.", "graph_cross_model."),
    ("ln_vision.", "ln_vision."),
    ("query_tokens", "query_tokens"),
    ("Qformer.", "Qformer."),
    ("vision_proj.", "vision_proj."),
    ("text_proj.", "text_proj."),
    ("itm_head.", "itm_head."),
    ("temp", "temp"),
)

_QFORMER = "Qformer.bert.encoder.layer.{i}."
HUGGING_FACE: Table = (
    ("vision_model.embeddings.class_embedding", "visual_encoder.cls_token"),
    ("vision_model.embeddings.position_embedding", "visual_encoder.pos_embed"),
    ("vision_model.embeddings.patch_embedding.", "visual_encoder.patch_embed.proj."),
    ("vision_model.encoder.layers.{i}.layer_norm1.", "visual_encoder.blocks.{i}.norm1."),
    ("vision_model.encoder.layers.{i}.layer_norm2.", "visual_encoder.blocks.{i}.norm2."),
    ("vision_model.encoder.layers.{i}.self_attn.qkv.", "visual_encoder.blocks.{i}.attn.qkv."),
    ("vision_model.encoder.layers.{i}.self_attn.projection.", "visual_encoder.blocks.{i}.attn.proj."),
    ("vision_model.encoder.layers.{i}.mlp.", "visual_encoder.blocks.{i}.mlp."),
    ("vision_model.post_layernorm.", "ln_vision."),
    ("query_tokens", "query_tokens"),
    ("qformer.layernorm.", "Qformer.bert.embeddings.LayerNorm."),
    ("qformer.encoder.layer.{i}.attention.attention.", _QFORMER + "attention.self."),
    ("qformer.encoder.layer.{i}.crossattention.attention.", _QFORMER + "crossattention.self."),
    ("qformer.encoder.layer.{i}.", _QFORMER),
    ("embeddings.word_embeddings.", "Qformer.bert.embeddings.word_embeddings."),
    ("embeddings.position_embeddings.", "Qformer.bert.embeddings.position_embeddings."),
    ("vision_projection.", "vision_proj."),
    ("text_projection.", "text_proj."),
    ("itm_head.", "itm_head."),
)

BERT: Table = (
    ("embeddings.word_embeddings.", "Qformer.bert.embeddings.word_embeddings."),
    ("embeddings.position_embeddings.", "Qformer.bert.embeddings.position_embeddings."),
    ("embeddings.LayerNorm.", "Qformer.bert.embeddings.LayerNorm."),
    ("encoder.layer.{i}.", _QFORMER),
    ("cls.predictions.bias", "Qformer.cls.predictions.bias"),
    ("cls.predictions.transform.", "Qformer.cls.predictions.transform."),
)


def to_reference_name(table: Table, name: str) -> str | None:
    """Returns the reference's name for `name`, or None where the table has no place for it."""
    return _translate(table, name)


def from_reference_name(table: Table, name: str) -> str | None:
    """Returns the name there for one of the reference's, or None where such a file does not hold it."""
    return _translate(((here, there) for there, here in table), name)


def _translate(table: Iterable[tuple[str, str]], name: str) -> str | None:
    for source, target in table:
        pattern = re.escape(source).replace(r"\{i\}", r"(?P<i>\d+)") + ("(?P<rest>.*)" if source.endswith(".") else "$")
        if found := re.match(pattern, name):
            groups = found.groupdict()
            return target.replace("{i}", groups.get("i") or "") + (groups.get("rest") or "")
    return None
