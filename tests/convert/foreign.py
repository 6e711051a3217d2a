"""Weights as other projects distribute them, with the goldens' numbers or random ones."""

import ast
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

GOLDEN = Path(__file__).parents[1] / "golden"
TABLE = "graph_cross_model.pos_2D_embed"
VISION = "visual_encoder."


def golden(name: str = "csal_t4") -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict]:
    """Returns the weights of a golden file by their names there, its other arrays, and its sizes."""
    file = dict(np.load(GOLDEN / f"{name}.npz"))
    weights = {key[6:]: array for key, array in file.items() if key.startswith("param/")}
    return weights, file, ast.literal_eval(str(file["meta/config"]))


def options(meta: dict) -> dict:
    """What the goldens' shapes do not tell."""
    return {
        "sim_threshold": meta["sim_th"], "vision_heads": meta["vheads"], "graph_heads": meta["gheads"],
        "qformer_heads": meta["qheads"], "max_text_length": 8,
    }  # fmt: skip


def eva(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The ViT's file: no prefix; a norm and a head that are not used."""
    width = weights[VISION + "cls_token"].shape[-1]
    of_vision = {name.removeprefix(VISION): x for name, x in weights.items() if name.startswith(VISION)}
    more = {"norm.weight": np.ones(width, np.float32), "norm.bias": np.zeros(width, np.float32),
            "head.weight": np.ones((3, width), np.float32)}  # fmt: skip
    return of_vision | more


def stgt(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The release's checkpoint: no ViT and no table of positions, but a buffer."""
    kept = {name: x for name, x in weights.items() if not name.startswith(VISION) and name != TABLE}
    return kept | {"Qformer.bert.embeddings.position_ids": np.arange(16)[None]}


def save(path: Path, weights: dict[str, np.ndarray]) -> Path:
    """Writes safetensors."""
    save_file({name: np.array(array, order="C") for name, array in weights.items()}, path)
    return path


def write_vocab(path: Path, size: int) -> Path:
    """Writes a vocabulary of `size` words."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    path.write_text("".join(f"{word}\n" for word in [*special, *(f"w{i}" for i in range(size - len(special)))]))
    return path
