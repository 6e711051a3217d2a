"""WebVid: web videos with the text beside them (docs/data/webvid.md)."""

import functools

from data_pipeline.captions import CaptionRow
from data_pipeline.datasets.annotation_files import find_file, read_rows
from data_pipeline.datasets.dataset import Annotated, Dataset, Request
from data_pipeline.datasets.video_files import VideoFiles


def read(request: Request) -> Annotated:
    """Reads a split. Rows without a text stay, and are listed as rejected. Exact sizes are not published."""
    rows = []
    name = f"results_{request.variant}_{request.split}.csv"
    path = request.annotations if request.annotations.is_file() else find_file(request.annotations, name)
    folder_of = functools.cache(functools.partial(_folder_of, request.videos))
    for number, entry in enumerate(read_rows(path, "videoid", "page_dir", "name"), 1):
        video = request.videos.find(f"{entry.text('videoid')}.mp4", folder_of(entry.text("page_dir")))
        rows.append(CaptionRow(video, entry.text("name") if entry.has("name") else "", number=number))
    return Annotated(rows)


def _folder_of(videos: VideoFiles, page_dir: str) -> str:
    """Returns the folder of a page, which lies in the folder of videos or, as downloaders make it, one level below."""
    if videos.has_folder(page_dir):
        return page_dir
    below = (f"{name}/{page_dir}" for name in sorted(path.name for path in videos.folder.iterdir()))
    return next(filter(videos.has_folder, below), page_dir)


DATASET = Dataset(read, {"10M": ("train", "val"), "2M": ("train", "val")})
