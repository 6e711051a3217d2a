"""Tables of the ablation's results: means over seeds with their standard errors, and paired differences."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from experiments.ablation.arms import ARMS
from experiments.steps import read_json
from experiments.tables import format_table
from stgt_jax.errors import STGTError

Results = Mapping[str, Mapping[int, Mapping[str, Any]]]  # arm -> seed -> the content of its file
_RETRIEVAL = {
    "R@1": ("similarity", "t2v_r1"),
    "R@5": ("similarity", "t2v_r5"),
    "right one of two": ("time_order", "twin_accuracy"),
    "frames shuffled": ("frames_shuffled", "time_order", "twin_accuracy"),
}
_GRAPH = {
    "edges between": ("graph", "edges_between"),
    "within": ("graph", "edges_within"),
    "weight": ("graph", "weight_between"),
    "attention between": ("graph", "attention_between"),
    "entropy": ("graph", "entropy"),
    "own shape": ("graph", "own_object"),
    "by edges": ("graph", "own_object_by_edges"),
    "by chance": ("graph", "own_object_by_chance"),
}
_NO_SHARES = ("weight", "entropy")  # the other figures of the graph are in percent
_DUPLICATES = {
    "pairs": ("duplicates", "effective_pairs"),
    **{
        f"{name} {kind}": ("duplicates", f"{figure}_{kind}")
        for name, figure in (("target", "target"), ("softmax", "probability"))
        for kind in ("own", "same", "others")
    },
}


def read_ablation(folder: str | Path) -> Results:
    """Reads the files of a folder of results.

    Raises:
      STGTError: a file is none of an ablation, or of one with other arms or settings.
    """
    results: dict[str, dict[int, Mapping[str, Any]]] = {}
    settings: dict[str, Path] = {}
    for path in sorted(Path(folder).glob("*.json")):
        content = read_json(path)
        if content.get("arm") not in ARMS or "seed" not in content:
            raise STGTError(f"'{path}' holds no result of an ablation; keep other files elsewhere")
        results.setdefault(content["arm"], {})[content["seed"]] = content
        settings.setdefault(content["settings"], path)
        if content["fields"] != ARMS[content["arm"]].fields:
            raise STGTError(f"'{path}' was trained with {content['fields']}, which is no longer this arm; delete it")
    if len(settings) > 1:
        one, other, *_ = settings.values()
        raise STGTError(f"'{one}' and '{other}' are of trainings with other settings; delete those of earlier ones")
    return {arm: dict(sorted(results[arm].items())) for arm in ARMS if arm in results}


def format_ablation(results: Results) -> str:
    """Returns `ablation_tables` as text."""
    tables = ablation_tables(results)
    return "\n\n".join(f"{title}\n{format_table(rows, left=['arm', 'over'])}" for title, rows in tables.items())


def ablation_tables(results: Results) -> dict[str, list[dict[str, str]]]:
    """Returns rows of cells by the table's title: retrieval with paired differences, the graph, shared captions."""
    if not results:
        return {}
    graphs = {arm: seeds for arm, seeds in results.items() if next(iter(seeds.values()))["graph"]}
    tables = {"text to video, test clips": [_retrieval_row(arm, results) for arm in results]}
    if graphs:
        tables["the graph, test clips"] = [_row(arm, graphs[arm], _GRAPH, _graph_number) for arm in graphs]
    title = "training clips whose caption another one of the batch has"
    tables[title] = [
        _row(arm, seeds, _DUPLICATES, lambda _, values: _mean(values, ".3f")) for arm, seeds in results.items()
    ]
    return tables


def learning_curves(results: Results, figure: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Returns the steps of the validations [n] and a figure of each seed's [seeds, n], by the title of the arm."""
    curves = {}
    for arm, seeds in results.items():
        each = [content["curve"] for content in seeds.values()]
        curves[ARMS[arm].title] = np.array(each[0]["step"]), np.array([curve[figure] for curve in each], dtype=float)
    return curves


def paired_difference(results: Results, arm: str, other: str, path: Sequence[str]) -> tuple[float, float, float]:
    """By how much a figure of `arm` is larger than that of `other`, over the seeds that both have.

    Returns:
      The mean difference, its standard error, and the p-value of Student's paired t-test (two-sided); NaN for what
      fewer than two seeds cannot tell.
    """
    shared = sorted(results[arm].keys() & results.get(other, {}).keys())
    differences = np.array([_figure(results[arm][s], path) - _figure(results[other][s], path) for s in shared])
    if len(shared) < 2:
        return float(differences.mean()) if len(shared) else math.nan, math.nan, math.nan
    p_value = float(stats.ttest_1samp(differences, 0.0).pvalue)
    return float(differences.mean()), float(stats.sem(differences)), p_value


def _retrieval_row(arm: str, results: Results) -> dict[str, str]:
    row = _row(arm, results[arm], _RETRIEVAL, lambda _, values: _mean(values, ".1f"))
    other = ARMS[arm].compared_with
    for name in ("R@1", "right one of two"):
        column = f"{name}, gain"
        row[column] = "-"
        if other in results:
            gain, error, p_value = paired_difference(results, arm, other, _RETRIEVAL[name])
            certainty = "" if math.isnan(error) else f" ± {error:.1f} (p {p_value:.2g})"
            row[column] = "-" if math.isnan(gain) else f"{gain:+.1f}{certainty}"
    return row | {"over": ARMS[other].title if other in results else "-"}


def _row(
    arm: str,
    seeds: Mapping[int, Mapping[str, Any]],
    columns: Mapping[str, Sequence[str]],
    show: Callable[[str, np.ndarray], str],
) -> dict[str, str]:
    figures = {name: np.array([_figure(content, path) for content in seeds.values()]) for name, path in columns.items()}
    shown = {name: show(name, values) for name, values in figures.items()}
    return {"arm": ARMS[arm].title, "seeds": str(len(seeds)), **shown}


def _graph_number(name: str, values: np.ndarray) -> str:
    return _mean(values, ".2f") if name in _NO_SHARES else _mean(100.0 * values, ".1f")


def _mean(values: np.ndarray, spec: str) -> str:
    """The mean with its standard error, or alone where one seed tells none."""
    if np.isnan(values).all():
        return "-"
    mean = f"{np.nanmean(values):{spec}}"
    return mean if len(values) < 2 else f"{mean} ± {stats.sem(values):{spec}}"


def _figure(content: Mapping[str, Any], path: Sequence[str]) -> float:
    value: Any = content
    for name in path:
        value = value[name]
    return math.nan if value is None else float(value)
