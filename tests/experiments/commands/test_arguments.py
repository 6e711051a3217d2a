"""What a command line means: every value survives, every mistake is refused in one line that names it."""

import argparse
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recipe_words import recipe_with

from experiments.commands.arguments import CommandParser
from experiments.commands.main import COMMANDS
from experiments.commands.processes import Processes
from experiments.commands.values import File, Folder, RecipeFields, format_value, read_value
from experiments.perf.bench.settings import DataSettings, GraphAttentionSettings
from experiments.recipe_fields import describe_fields, describe_parameters, list_fields, replace_fields
from experiments.recipes import RECIPES, Recipe, get_recipe
from stgt_jax.config import GenerationConfig
from stgt_jax.convert.options import Conversion
from stgt_jax.errors import STGTError


def example(
    word: str = "none given",  # positional
    *,
    needed: str,  # without a default
    num_clips: int = 10,  # 100 % of them
    rate: float = 0.5,  # of something
    switch: bool = False,  # on or off
    limit: int | None = None,  # at most
    scale: tuple[float, float] = (0.5, 1.0),  # low and high
    sizes: tuple[int, ...] = (),  # any number of them
    parts: int | Literal["auto"] = 1,  # number or word
    loss: Literal["vtc", "csal"] | None = None,  # one of two
    fields: RecipeFields,
) -> None:
    """Has an option of every type."""


PARSER = CommandParser(example, "stgt example")


def read(*words: str) -> dict[str, Any]:
    """Returns the arguments but for `needed=x`, and `fields` only if there are any."""
    arguments, json = PARSER.read(["--needed=x", *words])
    assert json is None
    return {name: value for name, value in arguments.items() if (name, value) not in (("needed", "x"), ("fields", {}))}


def error_of(*words: str) -> str:
    with pytest.raises(STGTError) as caught:
        read(*words)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], {}),
        (["text"], {"word": "text"}),
        (["--num-clips", "7"], {"num_clips": 7}),
        (["--num_clips=7"], {"num_clips": 7}),
        (["--num_clips=7", "--num-clips=9"], {"num_clips": 9}),
        (["--needed=a=b"], {"needed": "a=b"}),
        (["--needed", "--a=b"], "option --needed needs a value; write --needed=VALUE"),
        (["--needed=--a"], {"needed": "--a"}),
        (["--needed="], {"needed": ""}),
        (["--num-clips", "-4"], {"num_clips": -4}),
        (["--rate", "-1e-3"], {"rate": -0.001}),
        (["--rate=1e-3"], {"rate": 0.001}),
        (["--sizes", "1,-2,3"], {"sizes": (1, -2, 3)}),
        (["--sizes", "-1,2"], {"sizes": (-1, 2)}),
        (["--sizes=5"], {"sizes": (5,)}),
        (["--sizes="], {"sizes": ()}),
        (["--scale", "0.8,1.0"], {"scale": (0.8, 1.0)}),
        (["--scale=(0.8,", "1)"], "expected float,float but got '(0.8,'"),
        (["--scale=(0.8, 1)"], {"scale": (0.8, 1.0)}),
        (["--limit", "none"], {"limit": None}),
        (["--limit=3", "--limit=None"], {"limit": None}),
        (["--limit=3"], {"limit": 3}),
        (["--parts=auto"], {"parts": "auto"}),
        (["--parts=-1"], {"parts": -1}),
        (["--loss=csal"], {"loss": "csal"}),
        (["--loss=none"], {"loss": None}),
        (["--switch"], {"switch": True}),
        (["--switch", "text"], {"switch": True, "word": "text"}),
        (["--switch", "false"], {"switch": False}),
        (["--switch=True"], {"switch": True}),
        (["--train.num_steps", "3"], {"fields": {"train.num_steps": 3}}),
        (["--train.num-steps=3"], {"fields": {"train.num_steps": 3}}),
        (["--num_steps=3"], {"fields": {"train.num_steps": 3}}),
        (["--num-steps", "3", "--vocab-from-data"], {"fields": {"train.num_steps": 3, "vocab_from_data": True}}),
        (["--loss.contrastive=csal"], {"fields": {"train.loss.contrastive": "csal"}}),
        (["--num_clips", "ten"], "argument --num-clips: expected int but got 'ten'; see `stgt example --help`"),
        (["--num_clips=1.5"], "argument --num-clips: expected int but got '1.5'"),
        (["--rate=much"], "argument --rate: expected float but got 'much'"),
        (["--rate=nan"], "argument --rate: 'nan' is not a finite number"),
        (["--switch=yes"], "argument --switch: expected true|false but got 'yes'"),
        (["--scale=0.8"], "argument --scale: expected float,float but got '0.8'"),
        (["--scale=0.8,b"], "argument --scale: expected float but got 'b'"),
        (["--parts=atuo"], "argument --parts: expected int|auto but got 'atuo'; did you mean 'auto'?"),
        (["--loss=vct"], "argument --loss: expected vtc|csal but got 'vct'; did you mean 'vtc'?"),
        (["--train.num_steps=ten"], "argument --train.num_steps: expected int but got 'ten'"),
        (["--num-clips"], "option --num-clips needs a value; write --num-clips=VALUE"),
        (["--num-clips", "--switch"], "option --num-clips needs a value; write --num-clips=VALUE"),
        (["--num-clpis=3"], "unknown option --num-clpis; did you mean '--num-clips'?"),
        (["--train.num_step=3"], "unknown option --train.num_step; did you mean '--train.num_steps'?"),
        (["--num-step=3"], "unknown option --num-step; did you mean '--num_steps'?"),
        (["--warm_up_steps=3"], "unknown option --warm_up_steps; did you mean '--warmup_steps'?"),
        (["--word=text"], "unknown option --word"),
        (["--train=3"], "unknown option --train"),
        (["--steps=3"], "unknown option --steps"),  # an ending begins after a dot
        (["--zq=3"], "unknown option --zq; see `stgt example --help`"),
        (["--=3"], "unknown option --; see `stgt example --help`"),
        (["--dropout=0"], "option --dropout could be --model.graph.dropout or --model.qformer.dropout; write one of"),
        (["one", "two"], "unrecognized arguments: two; see `stgt example --help`"),
        (["-x"], "unrecognized arguments: -x"),
    ],
)  # fmt: skip
def test_words_are_read_or_refused(words, expected):
    if isinstance(expected, str):
        assert expected in error_of(*words)
    else:
        assert read(*words) == expected


def test_missing_option_is_named():
    with pytest.raises(STGTError, match="the following arguments are required: --needed; see `stgt example --help`"):
        PARSER.read([])


def test_help_shows_description_types_defaults_and_comments():
    text = " ".join(PARSER.format_help().split())
    assert "Has an option of every type." in text and "`stgt recipes RECIPE`" in text
    for line in (
        "WORD positional (default: none given)",
        "--needed str without a default (required)",
        "--num-clips int 100 % of them (default: 10)",
        "--switch [true|false] on or off --limit int at most --scale float,float low and high (default: 0.5,1.0)",
        "--sizes int,... any number of them --parts int|auto number or word (default: 1)",
    ):
        assert line in text


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_has_a_help_text(name):
    described = describe_parameters(COMMANDS[name])
    for group in (GraphAttentionSettings, DataSettings, Conversion, GenerationConfig, Processes):
        described |= describe_fields(group)
    groups = ("fields", "settings", "options", "generation", "processes")
    assert all(text.comment for option, text in described.items() if option not in groups)
    assert len((COMMANDS[name].__doc__ or "").splitlines()[0]) in range(10, 95)


@pytest.mark.parametrize("name", COMMANDS)
def test_option_of_a_command_has_no_other_meaning_in_a_recipe(name):
    names = {full.rpartition(".")[2] for full in describe_fields(Recipe)} - {"shards"}  # the same in both
    own = describe_parameters(COMMANDS[name]).keys()
    assert "fields" not in own or not own & names
    assert "batch_size" not in own


@pytest.mark.parametrize("name", RECIPES)
def test_values_listed_can_be_given_back(name):
    recipe = replace_fields(get_recipe(name), {"data.crop_scale": (0.25, 1.0), "data.shards": "a b=c"})
    words = [f"--{field}={format_value(value)}" for field, value in list_fields(recipe).items()]
    assert recipe_with("moving_shapes_stage1", words) == recipe


@settings(suppress_health_check=[HealthCheck.too_slow])  # the first text takes a table of all characters
@given(st.integers(1, 10**9), st.floats(allow_nan=False, allow_infinity=False), st.booleans(), st.text())
def test_every_value_survives_the_way_through_text(number, rate, switch, text):
    words = [f"--num-clips={number}", f"--rate={rate}", f"--switch={switch}", f"--needed={text}"]
    given = {"num_clips": number, "rate": rate, "switch": switch, "needed": text}
    assert PARSER.read(words)[0] == given | {"fields": {}}


def test_folder_and_file_that_cannot_be_written_are_refused(tmp_path):
    (tmp_path / "file").touch()
    for kind, path, complaint in (
        (Folder, tmp_path / "file", "file' is not a folder that can be written to"),
        (Folder, tmp_path / "file" / "run", "file' is not a folder that can be written to"),
        (File, tmp_path / "file" / "x.json", "file' is not a folder that can be written to"),
        (File, tmp_path, "is a folder; name a file"),
    ):
        with pytest.raises(argparse.ArgumentTypeError, match=complaint):
            read_value(kind, str(path))
    for kind, path in ((Folder, tmp_path), (Folder, tmp_path / "a/b"), (File, tmp_path / "a/b"), (File, "new.json")):
        assert read_value(kind, str(path)) == str(path) and not (tmp_path / "a").exists()
    assert read_value(Folder, "gs://bucket/run") == "gs://bucket/run"
