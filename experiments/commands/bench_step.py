"""`stgt bench step`."""

from dataclasses import KW_ONLY, dataclass

from experiments.commands.values import Figures, RecipeFields
from experiments.recipes import get_recipe


@dataclass(frozen=True)
class BenchStep:
    """Time one train step, whole and by part, on random clips: no shards are needed."""

    recipe: str = "moving_shapes_stage1"  # name of the recipe; `stgt recipes` lists them
    _: KW_ONLY
    repeats: int = 5  # runs, of which the median counts
    text_length: int | None = None  # tokens of a caption (default: 32, or what the model can read if that is less)
    fields: RecipeFields

    def run(self) -> Figures:
        recipe = get_recipe(self.recipe, self.fields)
        from experiments.perf.bench.step import bench_step, format_figures

        figures = bench_step(recipe, repeats=self.repeats, text_length=self.text_length)
        print(format_figures(figures))
        return figures
