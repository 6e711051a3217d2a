"""The checks that every config shares: what passes, and the one line that names what does not."""

from dataclasses import dataclass
from typing import Any, Literal

import pytest

from data_pipeline.errors import DataError
from stgt_jax.checks import check_choices, check_not_negative, check_positive, check_rate, did_you_mean
from stgt_jax.errors import STGTError


@dataclass(frozen=True)
class Options:
    colour: Literal["red", "blue"] = "red"
    size: int | Literal["auto"] = 1
    name: str = "any"
    rate: float = 0.5


def test_closest_name_is_suggested_and_without_one_all_are_listed() -> None:
    assert did_you_mean("bleu", ["red", "blue"]) == "; did you mean 'blue'?"
    assert did_you_mean("x", ["red", "blue"]) == "; known: blue, red"


@pytest.mark.parametrize("options", [{}, {"colour": "blue"}, {"size": "auto"}, {"size": -3}, {"name": "read"}])
def test_values_that_the_annotations_allow_pass(options: dict[str, Any]) -> None:
    check_choices("section", Options(**options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"colour": "read"}, "section.colour='read' is not a choice; did you mean 'red'?"),
        ({"colour": 3}, "section.colour='3' is not a choice; known: blue, red"),
        ({"size": "atuo"}, "section.size='atuo' is not a choice; did you mean 'auto'?"),
    ],
)
def test_value_outside_a_literal_is_named_with_its_choices(options: dict[str, Any], message: str) -> None:
    with pytest.raises(STGTError) as error:
        check_choices("section", Options(**options))
    assert str(error.value) == message


@pytest.mark.parametrize("check", [check_positive, check_not_negative, check_rate])
def test_number_out_of_range_is_named(check: Any) -> None:
    check("section", Options(), "rate")
    with pytest.raises(STGTError, match=r"section\.rate=-0\.5 must "):
        check("section", Options(rate=-0.5), "rate")


def test_one_class_catches_the_mistakes_of_both_packages() -> None:
    assert issubclass(DataError, STGTError)
