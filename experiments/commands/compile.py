"""`stgt compile`."""

import os

from experiments.commands.values import Figures, RecipeFields
from experiments.recipes import get_recipe


def compile(
    recipe: str,  # name of the recipe; `stgt recipes` lists them
    *,
    topology: str,  # of a slice, such as v5e:16x16 or v4:4x4x8
    num_slices: int = 1,  # slices of that kind
    text_length: int | None = None,  # tokens of a caption (default: 32, or what the model can read if that is less)
    fields: RecipeFields,
) -> Figures:
    """Compile a recipe's train step for a TPU slice, without a TPU.

    Shows the memory, the FLOPs and the communication of each device, and the least time that a step can take.
    """
    changed = get_recipe(recipe, fields)
    # jax reads these when it is imported. Nothing runs, so no accelerator is needed; and without one jax cannot load a
    # program for it from the compilation cache.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    from experiments.perf.compile.report import format_figures
    from experiments.perf.compile.train_step import compile_recipe

    figures = compile_recipe(changed, topology, num_slices=num_slices, text_length=text_length)
    print(format_figures(figures))
    return figures
