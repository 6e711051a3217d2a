"""`stgt recipes`."""

from experiments.commands.values import format_value, type_name
from experiments.recipe_fields import describe_fields, list_fields
from experiments.recipes import RECIPES, Recipe, get_recipe
from experiments.tables import align


def recipes(
    recipe: str = "",  # name of a recipe
) -> None:
    """List the recipes, or the fields of one: value, type and meaning."""
    rows = [[name, (make.__doc__ or "").splitlines()[0]] for name, make in RECIPES.items()]
    if recipe:
        values = list_fields(get_recipe(recipe))
        rows = [
            [f"--{name} {format_value(values[name])}", type_name(kind), comment]
            for name, (kind, comment, _) in describe_fields(Recipe).items()
        ]
    print(align(rows))
