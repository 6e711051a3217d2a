"""`stgt data build`."""

from dataclasses import KW_ONLY, dataclass

from experiments.commands.values import Figures, Folder


@dataclass(frozen=True)
class DataBuild:
    """Build a split of a shard set from videos and their captions.

    A clip that cannot be decoded is left out, counted, and listed with the reason in rejected.jsonl.
    """

    captions: str  # CSV file with a header, or JSON list, of `video` (path relative to the file) and `caption`
    _: KW_ONLY
    out: Folder  # folder of the shard set; its other splits stay
    split: str = "train"  # name of the split
    vocab: str | None = None  # WordPiece vocabulary file; otherwise the shard set's own, or one made from the captions
    num_kept_frames: int = 16  # frames kept of each clip
    resize: int = 256  # short side of the kept frames, in pixels
    max_text_length: int = 32  # tokens of a caption, [CLS] and [SEP] included; longer captions are cut
    overwrite: bool = False  # replace the split if it exists

    def run(self) -> Figures:
        from data_pipeline.build import build_shards

        report = build_shards(**vars(self))
        print(report.summary())
        return report.to_dict()
