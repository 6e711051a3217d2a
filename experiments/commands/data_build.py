"""`stgt data build`."""

from data_pipeline.config import CLIP_TIME_LIMIT, DEFAULT_JPEG_QUALITY, Encoding, FrameShape
from experiments.commands.values import Figures, Folder


def data_build(
    # CSV file with a header, or JSON list, of `video` (path relative to the file) and `caption`; also `start` and `end`
    # (seconds) of a segment, `group`, `question` and `answer`
    captions: str,
    *,
    out: Folder,  # folder of the shard set; its other splits stay
    split: str = "train",  # name of the split
    vocab: str | None = None,  # WordPiece vocabulary file; otherwise the shard set's own, or one made from the captions
    num_kept_frames: int = 24,  # frames kept of each video; a multiple of the frames that the model takes is best
    resize: int = 256,  # short side of the kept frames, in pixels; of stretched ones both sides
    frame_shape: FrameShape = "keep_aspect",  # stretch makes frames square, as the original does
    encoding: Encoding = "jpeg",  # of the kept frames; raw loses nothing and takes ten times the bytes
    jpeg_quality: int = DEFAULT_JPEG_QUALITY,  # 1 to 100
    max_damage: float = 0.0,  # share of a video, 0 to 1, that may be damaged or missing
    time_limit: float = CLIP_TIME_LIMIT,  # seconds for reading one video
    max_text_length: int = 32,  # tokens of a caption, including [CLS] and [SEP]; longer captions are cut
    overwrite: bool = False,  # replace the split if it exists
) -> Figures:
    """Build a split of a shard set from videos and their captions.

    A record is one video with all its captions. What cannot be used is left out, counted, and listed with the reason in
    rejected.jsonl.
    """
    from data_pipeline.build import build_shards

    report = build_shards(
        captions, out, split=split, vocab=vocab, num_kept_frames=num_kept_frames, resize=resize,
        frame_shape=frame_shape, encoding=encoding, jpeg_quality=jpeg_quality, max_damage=max_damage,
        time_limit=time_limit, max_text_length=max_text_length, overwrite=overwrite,
    )  # fmt: skip
    print(report.summary())
    return report.to_dict()
