"""The embedded data set `moving_shapes`: real h264 clips of coloured shapes, with a natural-language caption each.

Most captions differ from another one in time order only, and that other one is in the data set too. Everything follows
from the seed: `scenes` says what happens in the clips, `render` draws it, `write` makes the files.
"""

from data_pipeline.moving_shapes.render import render
from data_pipeline.moving_shapes.scenes import KIND_SHARES, Actor, Scene, sample_scenes
from data_pipeline.moving_shapes.write import make_moving_shapes, write_mp4

__all__ = ["KIND_SHARES", "Actor", "Scene", "make_moving_shapes", "render", "sample_scenes", "write_mp4"]
