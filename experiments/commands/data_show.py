"""`stgt data show`."""

import dataclasses
import re

from experiments.commands.values import Figures, File, RecipeFields
from experiments.recipes import get_recipe
from stgt_jax.errors import STGTError


def data_show(
    shards: str,  # folder of the shard set
    recipe: str = "moving_shapes_stage1",  # name of the recipe whose frames and augmentation are shown
    *,
    out: File,  # the HTML file to write
    split: str = "train",  # name of the split
    records: str = "",  # numbers of the records to show, as 3,17,20; by default random ones
    count: int = 24,  # random records to show
    sample_seed: int = 0,  # of their choice and augmentation
    fields: RecipeFields,
) -> Figures:
    """Write a page of records as the model will see them.

    It shows the frames that training takes, after augmentation, those that evaluation takes, captions and tokens.
    """
    from data_pipeline.contact_sheet import write_contact_sheet

    changed = get_recipe(recipe, fields)
    data = dataclasses.replace(changed.data, shards=shards)
    sizes = {"num_frames": changed.model.num_frames, "image_size": changed.model.vision.image_size}
    numbers = _numbers(records) if records else None
    num_shown = write_contact_sheet(out, data, split, records=numbers, count=count, seed=sample_seed, **sizes)
    print(f"{num_shown} records: {out}")
    return {"num_records": num_shown, "page": out}


def _numbers(text: str) -> list[int]:
    if not re.fullmatch(r"\d+(\s*,\s*\d+)*", text.strip()):
        raise STGTError(f"--records {text!r} is not a list of numbers, as 3,17,20")
    return [int(number) for number in text.split(",")]
