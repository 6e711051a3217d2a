"""The embedded data set `crowded_shapes`: clips in which two like shapes must be followed to tell what each one does.

It is harder than `moving_shapes`: small shapes, others that the caption does not name, paths that cross, a bar that
hides a part, a camera that moves. Some captions of the training clips say less, so that several clips share them, as
in data from the web.
"""

from data_pipeline.crowded_shapes.render import render, shape_numbers
from data_pipeline.crowded_shapes.scenes import Crowd, sample_crowds
from data_pipeline.crowded_shapes.write import make_crowded_shapes

__all__ = ["Crowd", "make_crowded_shapes", "render", "sample_crowds", "shape_numbers"]
