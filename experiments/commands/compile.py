"""`stgt compile`."""

import os
from dataclasses import KW_ONLY, dataclass

from experiments.commands.values import Figures, RecipeFields
from experiments.recipes import get_recipe


@dataclass(frozen=True)
class Compile:
    """Compile a recipe's train step for a TPU slice, without a TPU.

    Shows the memory, the FLOPs and the communication of each device, and the least time that a step can take.
    """

    recipe: str  # name of the recipe; `stgt recipes` lists them
    _: KW_ONLY
    topology: str  # of a slice, such as v5e:16x16 or v4:4x4x8
    num_slices: int = 1  # slices of that kind
    text_length: int | None = None  # tokens of a caption (default: 32, or what the model can read if that is less)
    fields: RecipeFields

    def run(self) -> Figures:
        recipe = get_recipe(self.recipe, self.fields)
        # Read by jax when it is imported. Nothing runs, so no accelerator need be taken; and without one, a program for
        # it cannot be read back from the cache.
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
        os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
        from experiments.perf.compile.report import format_figures
        from experiments.perf.compile.train_step import compile_recipe

        figures = compile_recipe(recipe, self.topology, num_slices=self.num_slices, text_length=self.text_length)
        print(format_figures(figures))
        return figures
