"""`stgt recipes`."""

from dataclasses import dataclass

from experiments.commands.values import format_value, type_name
from experiments.recipe_fields import describe_fields, list_fields
from experiments.recipes import RECIPES, get_recipe
from experiments.tables import align


@dataclass(frozen=True)
class Recipes:
    """List the recipes, or the fields of one: value, type and meaning."""

    recipe: str = ""  # name of a recipe

    def run(self) -> None:
        rows = [[name, (make.__doc__ or "").splitlines()[0]] for name, make in RECIPES.items()]
        if self.recipe:
            recipe = get_recipe(self.recipe)
            described, values = describe_fields(type(recipe)), list_fields(recipe)
            rows = [
                [f"--{name} {format_value(values[name])}", type_name(kind), comment]
                for name, (kind, comment) in described.items()
            ]
        print(align(rows))
