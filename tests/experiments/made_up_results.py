"""Results of an ablation that no training gave."""

from typing import Any

import numpy as np

from experiments.ablation.arms import ARMS

GRAPH = (
    "edges_between", "edges_within", "weight_between", "attention_between", "entropy", "own_object",
    "own_object_by_edges", "own_object_by_chance",
)  # fmt: skip


def ablation_result(arm: str, seed: int, *, r1: float | None = None, settings: str = "a") -> dict[str, Any]:
    rng = np.random.default_rng([seed, *arm.encode()])
    kinds = [f"{figure}_{kind}" for figure in ("target", "probability") for kind in ("own", "same", "others")]
    return {
        "arm": arm,
        "seed": seed,
        "settings": settings,
        "fields": dict(ARMS[arm].fields),
        "similarity": {"t2v_r1": rng.uniform(0, 100) if r1 is None else r1, "t2v_r5": rng.uniform(0, 100)},
        "time_order": {"twin_accuracy": rng.uniform(50, 100)},
        "frames_shuffled": {"time_order": {"twin_accuracy": 50.0}},
        "graph": {} if arm == "none" else dict(zip(GRAPH, rng.uniform(size=8).tolist(), strict=True)),
        "duplicates": dict(zip([*kinds, "effective_pairs"], rng.uniform(size=7).tolist(), strict=True)),
        "curve": {"step": [1, 2], "t2v_r1": rng.uniform(size=2).tolist(), "twin_accuracy": [50.0, 60.0]},
    }
