"""`stgt data build`."""

from pathlib import Path

from data_pipeline.config import CLIP_TIME_LIMIT, DEFAULT_JPEG_QUALITY, Encoding, FrameShape, TextCleaning
from experiments.commands.values import Figures, Folder


def data_build(
    # caption file: CSV with a header, or JSON list, of `video` (path relative to the file) and `caption`; also `start`
    # and `end` (seconds) of a segment, `group`, `question` and `answer`. Or the name of a data set: webvid, vidal,
    # msrvtt, msvd, didemo, lsmdc, lavis or folder, with --annotations
    source: str,
    *,
    out: Folder,  # folder of the shard set; its other splits stay
    annotations: str | None = None,  # of a data set: folder of its annotation files, or the file itself
    videos: str | None = None,  # of a data set: folder of its videos; by default that of the annotations
    variant: str | None = None,  # of a data set, such as 7k; docs/data/ lists them
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
    clean_text: TextCleaning = "none",  # lower case and without some marks, as LAVIS or STGT cleans texts
    videos_per_shard: int | None = None,  # videos in a file of records; by default as many as have about 256 MB
    num_workers: int | None = None,  # processes that read videos; by default one for each CPU core
    overwrite: bool = False,  # replace the split if it exists
    retry_rejected: bool = False,  # read only the videos again that an earlier build rejected
    beam_runner: str | None = None,  # build on Apache Beam, such as DirectRunner or DataflowRunner
    beam_options: str = "",  # options of the Beam pipeline, in quotes, such as "--project=MINE --region=us-central1"
) -> Figures:
    """Build a split of a shard set from videos and their captions.

    A record is one video with all its captions. What cannot be used is left out, counted, and listed with the reason in
    rejected.jsonl.
    """
    from data_pipeline.build import build_shards
    from data_pipeline.captions import CaptionedVideos
    from data_pipeline.datasets.select import DATASETS, read_dataset
    from stgt_jax.checks import check, did_you_mean
    from stgt_jax.storage import check_storage

    check_storage(out, *([videos] if videos else []))
    captions: str | CaptionedVideos = source
    is_known = Path(source).suffix != "" or annotations is not None or source in DATASETS
    hint = did_you_mean(source, DATASETS)
    check(is_known, f"'{source}' is neither a caption file (.csv or .json) nor the name of a data set{hint}")
    if annotations is not None or source in DATASETS:
        check(annotations is not None, f"{source} needs --annotations, the folder of its annotation files")
        captions = read_dataset(source, annotations=annotations or "", videos=videos, split=split, variant=variant)
        print(*captions.remarks, sep="\n")
    for name, value in (("videos", videos), ("variant", variant)):
        is_used = value is None or isinstance(captions, CaptionedVideos)
        check(is_used, f"--{name} is for a data set by name; '{source}' is taken for a caption file")
    report = build_shards(
        captions, out, split=split, vocab=vocab, num_kept_frames=num_kept_frames, resize=resize,
        frame_shape=frame_shape, encoding=encoding, jpeg_quality=jpeg_quality, max_damage=max_damage,
        time_limit=time_limit, max_text_length=max_text_length, clean_text=clean_text, overwrite=overwrite,
        videos_per_shard=videos_per_shard, num_workers=num_workers, retry_rejected=retry_rejected,
        beam_runner=beam_runner, beam_options=beam_options,
    )  # fmt: skip
    print(report.summary())
    return report.to_dict()
