"""One source of weights: whose it is, its tensors under the reference's names, and what of it has no place here.

| kind | what it is |
|---|---|
| EVA ViT | `eva_vit_g.pth` |
| BLIP-2 | LAVIS' checkpoints of either stage, without the ViT |
| STGT | the release's checkpoints: no ViT, or its last blocks, and no table of positions |
| Hugging Face BLIP-2 | a folder with config.json, or its file of weights |
| BERT | `bert-base-uncased`, for a Q-Former from scratch |
| stgt_jax | a model of this project |
"""

import fnmatch
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from stgt_jax.convert.names import BERT, EVA, HUGGING_FACE, REFERENCE, Table, to_reference_name
from stgt_jax.convert.options import Conversion
from stgt_jax.convert.stored_tensor import StoredTensor
from stgt_jax.convert.tensor_files import Tensors, open_tensors, read_json
from stgt_jax.errors import STGTError

_USED_BLOCKS = {(1408, 40): 39}  # (width, blocks) of a known ViT: BLIP-2 and STGT leave its last block out
_TIED = {
    "cls.predictions.decoder.weight": "embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}
_BUFFER, _LANGUAGE_MODEL = "a buffer, the numbers from 0 on", "of a language model"
_LEFT_OUT = {  # patterns of names, and why a tensor has no place here
    "EVA ViT": {
        r"(norm|fc_norm)\.": "the final norm, which BLIP-2 and STGT do not use",
        r"head\.|lm_head\.": "the classifier",
        r"mask_token$": "of EVA's own pre-training",
    },
    "Hugging Face BLIP-2": {
        r"(.*\.)?position_ids$": _BUFFER,
        r"language_(model|projection)\.": _LANGUAGE_MODEL,
    },
    "BERT": {
        r"(.*\.)?position_ids$": _BUFFER,
        r"pooler\.": "the pooler, which the Q-Former does not have",
        r"cls\.seq_relationship\.": "the next-sentence head",
        r"embeddings\.token_type_embeddings\.": "its row 0, which every word has, was added to the positions",
    },
    "": {
        r"Qformer\.bert\.embeddings\.position_ids$": _BUFFER,
        r"(t5|opt|llm)_(proj|model)\.": _LANGUAGE_MODEL,
        r"visual_encoder\.(norm|fc_norm|head)\.": "the final norm and the classifier, which are not used",
    },
}


@dataclass(frozen=True)
class Source:
    """A source of weights."""

    path: str
    kind: str
    tensors: Tensors  # by the reference's name
    names: Mapping[str, str]  # the reference's name -> the name in the file
    left_out: Mapping[str, str]  # name in the file -> the reason
    settings: Mapping[str, Any] = field(default_factory=dict)  # what its config.json says: option -> value
    vocab: Path | None = None  # the vocabulary that lies beside it
    notes: Sequence[str] = ()  # what was changed


def open_source(path: str | os.PathLike[str], options: Conversion) -> Source:
    """Opens a file or a folder of weights of another project, and finds out whose they are.

    Args:
      path: of the file, or of a folder as Hugging Face has it.
      options: which tensors to leave out, and how many blocks of an EVA ViT to take.

    Raises:
      STGTError: it cannot be read, it is of no known kind, or a tensor has no place and is not to be left out.
    """
    path = Path(os.fspath(path))
    tensors, others = open_tensors(path)
    unwanted = [name for name in tensors if any(fnmatch.fnmatchcase(name, p) for p in options.leave_out)]
    left_out = dict.fromkeys(others, "not weights") | dict.fromkeys(unwanted, "by --leave-out")
    tensors = {name: tensor for name, tensor in tensors.items() if name not in left_out}
    kind, table = _kind(path, tensors)
    notes: list[str] = []
    if kind == "BERT":
        tensors = _bert(path, tensors, notes)
    left_out |= dict(_without_place(path, kind, tensors, options.vision_depth))
    found, unknown = {}, []
    for name in (name for name in tensors if name not in left_out):
        here = to_reference_name(table, name)
        if here is None:
            unknown.append(name)
        else:
            found[here] = name
    if unknown:
        first = ", ".join(sorted(unknown)[:5])
        raise STGTError(
            f"'{path}' ({kind}) holds {len(unknown)} tensors that have no place in the model: {first}"
            f"{', ...' if len(unknown) > 5 else ''}; name them with --leave-out if they are not wanted"
        )
    by_reference = {here: tensors[name] for here, name in found.items()}
    if kind == "Hugging Face BLIP-2":
        by_reference, found = _split_biases(path, by_reference, found)
    if kind == "BERT":
        by_reference, found = _query_mlps(by_reference, found)
        notes.append("the feed-forward of the queries is that of the text")
    folder = path if path.is_dir() else path.parent
    settings = _settings(folder / "config.json", kind)
    vocab = folder / "vocab.txt" if kind in ("Hugging Face BLIP-2", "BERT") else None
    known_vocab = vocab if vocab and vocab.exists() else None
    return Source(str(path), kind, by_reference, found, left_out, settings, known_vocab, notes)


def _kind(path: Path, tensors: Tensors) -> tuple[str, Table]:
    def any_begins(*prefixes: str) -> bool:
        return any(name.startswith(prefixes) for name in tensors)

    if any_begins("vision_model.", "qformer."):
        return "Hugging Face BLIP-2", HUGGING_FACE
    if any_begins("graph_cross_model."):
        return "STGT", REFERENCE
    if any_begins("Qformer.", "query_tokens", "ln_vision.", "visual_encoder."):
        return "BLIP-2", REFERENCE
    if any_begins("patch_embed.") and any_begins("blocks."):
        return "EVA ViT", EVA
    if any_begins("bert.encoder.", "encoder.layer."):
        return "BERT", BERT
    raise STGTError(
        f"'{path}' holds weights of no known model; its tensors are {', '.join(sorted(tensors)[:3])}, ...; known are"
        " EVA's ViT, BLIP-2 of LAVIS and of Hugging Face, STGT, BERT, and models of this project"
    )


def _without_place(path: Path, kind: str, tensors: Tensors, vision_depth: int | None) -> Iterator[tuple[str, str]]:
    patterns = _LEFT_OUT.get(kind, _LEFT_OUT[""])
    prefix = "Qformer." if kind in ("BLIP-2", "STGT") else ""
    for name, tensor in tensors.items():
        if reason := next((reason for pattern, reason in patterns.items() if re.match(pattern, name)), None):
            yield name, reason
        elif (tied := _TIED.get(name.removeprefix(prefix))) and name.startswith(prefix):
            # BLIP-2's embeddings are one level deeper than BERT's head.
            partner = prefix + ("bert." if prefix and tied.startswith("embeddings") else "") + tied
            _check_tied(path, name, tensor, partner, tensors.get(partner))
            yield name, f"the same as {partner}"
    if kind == "EVA ViT":
        blocks = {int(found[1]) for name in tensors if (found := re.match(r"blocks\.(\d+)\.", name))}
        width = next(t.shape[0] for name, t in tensors.items() if name.startswith("patch_embed."))
        depth = vision_depth or _USED_BLOCKS.get((width, len(blocks)), len(blocks))
        for name in tensors:
            if (found := re.match(r"blocks\.(\d+)\.", name)) and int(found[1]) >= depth:
                yield name, f"block {found[1]}: the first {depth} blocks are used"


def _check_tied(path: Path, name: str, tensor: StoredTensor, partner: str, other: StoredTensor | None) -> None:
    rows = tensor.shape[0]  # BERT's embeddings have got a row more
    if other is None or tensor.shape[1:] != other.shape[1:] or not np.array_equal(tensor.read(), other.read()[:rows]):
        raise STGTError(
            f"'{path}': {name} is not the same as {partner}, as it is in this model; name it with --leave-out to do"
            " without it"
        )


def _bert(path: Path, tensors: Tensors, notes: list[str]) -> Tensors:
    """BERT's tensors as the Q-Former has them: no prefix, no token types, no gamma and beta."""
    renamed = {
        re.sub(r"gamma$", "weight", re.sub(r"beta$", "bias", name.removeprefix("bert."))): tensor
        for name, tensor in tensors.items()
    }
    types = renamed.get("embeddings.token_type_embeddings.weight")
    positions = renamed.get("embeddings.position_embeddings.weight")
    words, bias = renamed.get("embeddings.word_embeddings.weight"), renamed.get("cls.predictions.bias")
    if words is not None:
        new = np.random.default_rng(0).normal(0.0, 0.02, (1, words.shape[1])).astype(np.float32)
        renamed["embeddings.word_embeddings.weight"] = _with_row(words, new)
        notes.append("the embedding of [DEC], which BERT does not have, is random (standard deviation 0.02)")
    if bias is not None:
        renamed["cls.predictions.bias"] = _with_row(bias, np.zeros(1, np.float32))
    if types is not None and positions is not None:
        renamed["embeddings.position_embeddings.weight"] = positions.mapped(
            lambda rows: np.asarray(rows, np.float32) + np.asarray(types.read(), np.float32)[0], positions.shape
        )
        notes.append("row 0 of the token types, which BERT adds to every word, was added to the position embeddings")
    return renamed


def _with_row(tensor: StoredTensor, row: np.ndarray) -> StoredTensor:
    shape = (tensor.shape[0] + 1, *tensor.shape[1:])
    return tensor.mapped(lambda rows: np.concatenate([np.asarray(rows, np.float32), row]), shape)


def _query_mlps(tensors: Tensors, names: Mapping[str, str]) -> tuple[Tensors, dict[str, str]]:
    """Gives the queries the feed-forward of the text."""
    more, their_names = dict(tensors), dict(names)
    for name, tensor in tensors.items():
        if found := re.match(r"(Qformer\.bert\.encoder\.layer\.\d+\.)(intermediate|output)(\..*)", name):
            copy = f"{found[1]}{found[2]}_query{found[3]}"
            more[copy], their_names[copy] = tensor, names[name]
    return more, their_names


def _split_biases(path: Path, tensors: Tensors, names: Mapping[str, str]) -> tuple[Tensors, dict[str, str]]:
    """Takes the joined biases of queries, keys and values apart; those of the keys must be zero."""
    split: Tensors = {}
    their_names: dict[str, str] = {}
    for name, tensor in tensors.items():
        if not name.endswith(".attn.qkv.bias"):
            split[name], their_names[name] = tensor, names[name]
            continue
        if np.any(tensor.third(1).read()):
            raise STGTError(
                f"'{path}': the second third of {names[name]}, the bias of the keys, is not zero; EVA's ViT has none,"
                " so these are not weights of BLIP-2"
            )
        for part, third in (("q_bias", 0), ("v_bias", 2)):
            split[name.replace("qkv.bias", part)] = tensor.third(third)
            their_names[name.replace("qkv.bias", part)] = names[name]
    return split, their_names


def _settings(file: Path, kind: str) -> dict[str, Any]:
    """What Hugging Face's config.json says that shapes do not; a value that it leaves out is that library's default."""
    if kind not in ("Hugging Face BLIP-2", "BERT") or not file.exists():
        return {}
    config = read_json(file)
    vision, qformer = (_section(file, config, name) for name in ("vision_config", "qformer_config"))
    if kind == "BERT":
        vision, qformer = {}, config
    _check_gelu(file, (vision, qformer))
    settings = {
        "qformer_heads": qformer.get("num_attention_heads", 12),
        "qformer_norm_epsilon": qformer.get("layer_norm_eps", 1e-12),
    }
    if kind == "BERT":
        return settings
    epsilon = vision.get("layer_norm_eps", 1e-6)
    return settings | {
        "vision_heads": vision.get("num_attention_heads", 16),
        "vision_norm_epsilon": epsilon,
        "ln_vision_epsilon": epsilon,
        "cross_attention_freq": qformer.get("cross_attention_frequency", 2),
    }


def _section(file: Path, config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = config.get(name) or {}
    if not isinstance(section, Mapping):
        raise STGTError(f"'{file}': \"{name}\" is not an object; download it again")
    return section


def _check_gelu(file: Path, sections: Iterable[Mapping[str, Any]]) -> None:
    for section in sections:
        if (activation := section.get("hidden_act", "gelu")) != "gelu":
            raise STGTError(f"'{file}': hidden_act is {activation!r}, and this model computes 'gelu' alone")
