"""`stgt data show`."""

import dataclasses

from experiments.commands.values import Figures, File, RecipeFields
from experiments.recipes import get_recipe


def data_show(
    shards: str,  # folder of the shard set
    recipe: str = "moving_shapes_stage1",  # name of the recipe whose frames and augmentation are shown
    *,
    out: File,  # the HTML file to write
    split: str = "train",  # name of the split
    count: int = 24,  # random records to show
    sample_seed: int = 0,  # of their choice and augmentation
    fields: RecipeFields,
) -> Figures:
    """Write a page of random records as the model will see them.

    It shows the frames that training takes, after augmentation, those that evaluation takes, captions and tokens.
    """
    from data_pipeline.contact_sheet import write_contact_sheet

    changed = get_recipe(recipe, fields)
    data = dataclasses.replace(changed.data, shards=shards)
    sizes = {"num_frames": changed.model.num_frames, "image_size": changed.model.vision.image_size}
    num_shown = write_contact_sheet(out, data, split, count=count, seed=sample_seed, **sizes)
    print(f"{num_shown} records: {out}")
    return {"num_records": num_shown, "page": out}
