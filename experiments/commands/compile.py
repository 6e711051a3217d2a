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
    cached_tokens: bool = False,  # compile also the step that takes the tokens of its frozen ViT in place of frames
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
    from experiments.perf.bench.step import check_frozen
    from experiments.perf.compile.report import format_comparison, format_figures
    from experiments.perf.compile.train_step import compile_recipe

    if cached_tokens:
        check_frozen(changed)
    figures = compile_recipe(changed, topology, num_slices=num_slices, text_length=text_length)
    print(format_figures(figures))
    if cached_tokens:
        of_tokens = compile_recipe(
            changed, topology, num_slices=num_slices, text_length=text_length, cached_tokens=True
        )
        print("\n" + format_comparison(figures, of_tokens))
        figures = {"frames": figures, "tokens": of_tokens}
    return figures
