"""Options laid onto nested frozen dataclasses."""

import dataclasses
from dataclasses import dataclass, field
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.options import apply_options, format_value, list_options, replace_options
from stgt_jax.errors import STGTError


@dataclass(frozen=True)
class Inner:
    rate: float = 0.5
    size: int = 4
    scale: tuple[float, float] = (0.5, 1.0)
    sizes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Outer:
    left: Inner = field(default_factory=Inner)
    right: Inner = field(default_factory=Inner)
    num_steps: int = 10
    warmup_steps: int = 5
    freeze: bool = False
    limit: int | None = None
    parts: int | Literal["auto"] = 1
    folder: str = ""

    def __post_init__(self) -> None:
        if self.warmup_steps >= self.num_steps:
            raise STGTError("warmup_steps must be less than num_steps")


def error_of(*arguments: str) -> str:
    with pytest.raises(STGTError) as caught:
        apply_options(Outer(), arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_full_names_reach_nested_fields_with_both_spellings():
    changed = apply_options(Outer(), ["--left.size", "7", "--right.rate=0.25", "--freeze", "true", "--folder=a=b"])
    assert changed == Outer(left=Inner(size=7), right=Inner(rate=0.25), freeze=True, folder="a=b")


def test_number_or_word():
    assert (
        apply_options(Outer(), ["--parts=auto"]).parts == "auto" and apply_options(Outer(), ["--parts=-1"]).parts == -1
    )
    assert error_of("--parts=atuo") == "--parts=atuo is neither a number nor auto; did you mean 'auto'?"


def test_ending_of_a_name_suffices_where_unique():
    @dataclass(frozen=True)
    class Recipe:
        train: Outer = field(default_factory=Outer)

    assert apply_options(Recipe(), ["--num_steps", "100"]).train.num_steps == 100
    assert apply_options(Recipe(), ["--left.size", "100"]).train.left.size == 100


def test_ambiguous_ending_is_refused_with_its_candidates():
    assert error_of("--size", "3") == "option --size could be --left.size or --right.size; write one of them"


def test_ending_counts_only_from_a_dot():
    assert "unknown option --steps" in error_of("--steps", "3")


@pytest.mark.parametrize(
    ("name", "meant"),
    [("left.siz", "left.size"), ("num_step", "num_steps"), ("frezee", "freeze"), ("warm_up_steps", "warmup_steps")],
)
def test_misspelt_name_is_refused_with_the_nearest(name, meant):
    assert error_of(f"--{name}", "3") == f"unknown option --{name}; did you mean '--{meant}'?"


def test_misspelt_option_of_the_command_itself_is_named():
    with pytest.raises(STGTError, match="did you mean '--resume'"):
        apply_options(Outer(), ["--resum", "3"], also_known=["resume"])


def test_unknown_name_unlike_any_points_to_the_list():
    assert error_of("--zq", "3") == "unknown option --zq; `stgt recipes RECIPE` lists all"


@pytest.mark.parametrize(
    ("argument", "complaint"),
    [
        ("--num_steps=ten", "--num_steps=ten is not a whole number"),
        ("--num_steps=1.5", "--num_steps=1.5 is not a whole number"),
        ("--left.rate=much", "--left.rate=much is not a number"),
        ("--left.rate=nan", "--left.rate=nan is not a finite number"),
        ("--freeze=yes", "--freeze=yes is not a bool; write true or false"),
        ("--left.scale=0.8", "--left.scale=0.8 must be 2 values with commas between them"),
        ("--left.scale=0.8,b", "--left.scale=b is not a number"),
        ("--left", "unknown option --left"),
        ("--num_steps", "option --num_steps needs a value; write --num_steps=VALUE"),
        ("num_steps=3", "'num_steps=3' is not an option; options are written --name value or --name=value"),
    ],
)
def test_bad_value_is_refused_in_one_line(argument, complaint):
    assert complaint in error_of(*([argument, "3"] if argument == "--left" else [argument]))


def test_option_followed_by_an_option_lacks_its_value():
    assert "--folder needs a value" in error_of("--folder", "--freeze", "true")


def test_negative_numbers_tuples_and_none():
    changed = apply_options(Outer(limit=3), ["--limit", "none", "--left.scale", "0.8,1.0", "--left.sizes=1,-2,3"])
    assert changed.limit is None
    assert changed.left.scale == (0.8, 1.0)
    assert changed.left.sizes == (1, -2, 3)
    assert apply_options(Outer(), ["--limit", "-4"]).limit == -4


def test_options_that_fit_only_together_are_taken_in_any_order():
    pair = ["--num_steps=3", "--warmup_steps=1"]
    assert apply_options(Outer(), pair) == apply_options(Outer(), pair[::-1]) == Outer(num_steps=3, warmup_steps=1)


def test_the_dataclass_itself_still_refuses():
    assert error_of("--num_steps=3") == "warmup_steps must be less than num_steps"


def test_later_option_wins():
    assert apply_options(Outer(), ["--num_steps=7", "--num_steps=9"]).num_steps == 9


def test_list_options_names_every_leaf():
    listed = list_options(Outer())
    assert listed["left.rate"] == 0.5 and listed["limit"] is None
    assert len(listed) == 2 * len(dataclasses.fields(Inner)) + len(dataclasses.fields(Outer)) - 2


@given(st.integers(6, 10**9), st.floats(allow_nan=False, allow_infinity=False), st.booleans())
def test_every_value_survives_the_way_through_text(steps, rate, freeze):
    changed = apply_options(Outer(), [f"--num_steps={steps}", f"--left.rate={rate}", f"--freeze={str(freeze).lower()}"])
    assert changed == replace_options(Outer(), {"num_steps": steps, "left.rate": rate, "freeze": freeze})


def test_values_listed_can_be_given_back():
    config = Outer(left=Inner(scale=(0.25, 1.0), sizes=(1, 2)), freeze=True, folder="a b")
    written = [f"--{name}={format_value(value)}" for name, value in list_options(config).items()]
    assert apply_options(Outer(), written) == config
