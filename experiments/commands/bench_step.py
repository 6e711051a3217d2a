"""`stgt bench step`."""

from experiments.commands.values import Figures, RecipeFields
from experiments.recipes import get_recipe


def bench_step(
    recipe: str = "moving_shapes_stage1",  # name of the recipe; `stgt recipes` lists them
    *,
    repeats: int = 5,  # runs; the median counts
    text_length: int | None = None,  # tokens of a caption (default: 32, or what the model can read if that is less)
    cached_tokens: bool = False,  # measure also a step that takes the tokens of its frozen ViT in place of frames
    fields: RecipeFields,
) -> Figures:
    """Time one train step, whole and by part, on random clips: no shards are needed."""
    changed = get_recipe(recipe, fields)
    from experiments.perf.bench import step

    figures = step.bench_step(changed, repeats=repeats, text_length=text_length, cached_tokens=cached_tokens)
    print(step.format_figures(figures))
    return figures
