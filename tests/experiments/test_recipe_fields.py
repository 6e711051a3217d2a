"""The fields of nested frozen dataclasses: listed, described and replaced by their full names."""

import dataclasses
from dataclasses import dataclass, field

import pytest

from experiments.recipe_fields import describe_fields, list_fields, replace_fields
from stgt_jax.errors import STGTError


@dataclass(frozen=True)
class Inner:
    rate: float = 0.5  # a share
    # Pixels,
    # of which
    size: int = 4  # there are 4


@dataclass(frozen=True)
class Outer:
    left: Inner = field(default_factory=Inner)
    right: Inner = field(default_factory=Inner)
    num_steps: int = 10
    warmup_steps: int = 5

    def __post_init__(self) -> None:
        if self.warmup_steps >= self.num_steps:
            raise STGTError("warmup_steps must be less than num_steps")


NAMES = ["left.rate", "left.size", "right.rate", "right.size", "num_steps", "warmup_steps"]


def test_every_field_is_listed_by_its_full_name():
    assert list_fields(Outer()) == dict(zip(NAMES, [0.5, 4, 0.5, 4, 10, 5], strict=True))
    kinds = [text.kind for text in describe_fields(Outer).values()]
    assert list(describe_fields(Outer)) == NAMES and kinds == [float, int, float, int, int, int]


def test_comments_beside_and_above_a_field_describe_it():
    described = ["a share", "Pixels, of which there are 4"] * 2 + ["", ""]
    assert [text.comment for text in describe_fields(Outer).values()] == described


def test_fields_are_replaced_at_any_depth():
    changed = replace_fields(Outer(), {"left.size": 7, "right.rate": 0.25, "num_steps": 20})
    assert changed == Outer(left=Inner(size=7), right=Inner(rate=0.25), num_steps=20)


def test_values_that_fit_only_together_are_taken_in_any_order():
    pair = {"num_steps": 3, "warmup_steps": 1}
    assert replace_fields(Outer(), pair) == replace_fields(Outer(), dict(reversed(pair.items()))) == Outer(**pair)


def test_the_dataclass_itself_still_refuses():
    with pytest.raises(STGTError, match="warmup_steps must be less than num_steps"):
        replace_fields(Outer(), {"num_steps": 3})


def test_the_original_stays():
    outer = Outer()
    replace_fields(outer, {"left.size": 7})
    assert outer == Outer() and dataclasses.is_dataclass(outer.left)
