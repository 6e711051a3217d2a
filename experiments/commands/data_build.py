"""`stgt data build`."""

from experiments.commands.values import Figures, Folder


def data_build(
    captions: str,  # CSV file with a header, or JSON list, of `video` (path relative to the file) and `caption`
    *,
    out: Folder,  # folder of the shard set; its other splits stay
    split: str = "train",  # name of the split
    vocab: str | None = None,  # WordPiece vocabulary file; otherwise the shard set's own, or one made from the captions
    num_kept_frames: int = 16,  # frames kept of each clip
    resize: int = 256,  # short side of the kept frames, in pixels
    max_text_length: int = 32,  # tokens of a caption, including [CLS] and [SEP]; longer captions are cut
    overwrite: bool = False,  # replace the split if it exists
) -> Figures:
    """Build a split of a shard set from videos and their captions.

    A clip that cannot be decoded is left out, counted, and listed with the reason in rejected.jsonl.
    """
    from data_pipeline.build import build_shards

    report = build_shards(
        captions, out, split=split, vocab=vocab, num_kept_frames=num_kept_frames, resize=resize,
        max_text_length=max_text_length, overwrite=overwrite,
    )  # fmt: skip
    print(report.summary())
    return report.to_dict()
