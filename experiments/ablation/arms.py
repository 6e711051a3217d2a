"""The arms of the ablation. Those of a group differ in one part of the model or the loss."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

RECIPES = {1: "crowded_shapes_stage1", 2: "crowded_shapes_stage2"}
FIRST_STAGE = "full"  # the arm from whose weights every second stage starts


@dataclass(frozen=True)
class Arm:
    """What a training differs in from the recipe of its stage."""

    title: str
    stage: Literal[1, 2]
    fields: Mapping[str, Any] = field(default_factory=dict)  # full name -> value
    compared_with: str = ""  # the arm that it is to be better than


ARMS: dict[str, Arm] = {
    "none": Arm("no graph (mean over frames)", 1, {"model.graph.variant": "none"}),
    "unweighted": Arm("graph without its weights", 1, {"model.graph.variant": "unweighted"}, "none"),
    FIRST_STAGE: Arm("full", 1, {}, "unweighted"),
    "vtc": Arm("full, then VTC", 2, {"train.loss.contrastive": "vtc"}),
    "csal": Arm("full, then CSAL", 2, {}, "vtc"),
    "csal_stopped": Arm(
        "full, then CSAL without gradient in its targets", 2, {"train.loss.csal_stop_gradient": True}, "vtc"
    ),
    "csal_sharp": Arm("full, then CSAL of sharpness 20", 2, {"train.loss.csal_sharpness": 20.0}, "vtc"),
}


def first_stages(names: list[str]) -> dict[str, list[str]]:
    """Groups arms by the first stage that they need: its name -> the second stages that start from it."""
    second = [name for name in names if ARMS[name].stage == 2]
    first = [name for name in names if ARMS[name].stage == 1]
    if second and FIRST_STAGE not in first:
        first.append(FIRST_STAGE)
    # The longest first, so that the processes end at about the same time.
    return {name: second if name == FIRST_STAGE else [] for name in sorted(first, key=lambda name: name != FIRST_STAGE)}
