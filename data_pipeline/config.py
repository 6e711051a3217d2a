"""How the loader turns shard sets into batches, as one frozen dataclass."""

from dataclasses import dataclass
from typing import Literal

from stgt_jax.checks import check, check_choices, check_not_negative, check_positive

FrameShape = Literal["keep_aspect", "stretch"]  # of stored frames: as the video shows them, or square
Encoding = Literal["jpeg", "raw"]  # of stored frames
StoredEncoding = Literal["jpeg", "raw", "tokens"]  # tokens: what a vision encoder makes of frames
TextCleaning = Literal["none", "lavis", "stgt"]  # of captions and questions, see `data_pipeline.text_cleaning`
DEFAULT_JPEG_QUALITY = 90  # 1 to 100
TRAIN_SPLIT, TEST_SPLIT = "train", "test"
VALIDATION_SPLITS = ("validation", "val")  # the first that a shard set has is used
CLIP_TIME_LIMIT = 300.0  # seconds for reading one video
MAX_PIXELS = 2**26  # of a frame, twice those of 8K; a file of a few kilobytes may claim any number
MAX_ASPECT = 32  # long side of a picture over its short side, likewise
WAIT_LIMIT = 600  # seconds that a batch may take


@dataclass(frozen=True)
class DataConfig:
    """The loader's options, in the order in which a clip meets them.

    The number of frames and their size are the model's: the functions of `data_pipeline.loader` take them as arguments.

    Raises:
      STGTError: an impossible value, named as `data.<option>`.
    """

    shards: str = ""  # folder of the shard set, as written by `stgt data build`
    mix_shards: tuple[str, ...] = ()  # folders of further shard sets to train on
    # Share of each shard set in a batch, that of data.shards first. By default in proportion to their videos.
    mix_weights: tuple[float, ...] = ()
    # What one epoch is. videos: every video once, with one of its captions. captions: every caption once. questions:
    # every question once; then the texts of the batches are questions.
    epoch: Literal["videos", "captions", "questions"] = "videos"
    question_length: int = 44  # tokens that a question is padded or cut to
    # File of the answers that a model chooses among: lines, a JSON list, or train_ans2label.json. By default the most
    # frequent answers of the training split, as many as the model's num_answers.
    answers: str = ""
    max_bad_records: int = 0  # damaged records that training may skip; more end the run
    frame_shape: FrameShape = "keep_aspect"  # the shards must have been built with the same
    clean_text: TextCleaning = "none"  # the shards must have been built with the same
    train_frame_sampling: Literal["headtail", "uniform"] = "headtail"  # evaluation is always uniform
    crop_scale: tuple[float, float] = (0.5, 1.0)  # area of the random resized crop; (1.0, 1.0) is the centre crop
    crop_filter: Literal["antialiased", "bicubic"] = "antialiased"  # bicubic, without antialiasing, is the original's
    flip: bool = True  # mirror half of the training clips; turn it off if captions distinguish left from right
    rand_augment: bool = False  # change training clips by two random operations out of ten, as the original does
    num_workers: int = 2  # worker processes of the training loader; 0 loads in the training process
    wait_limit: int = WAIT_LIMIT  # seconds that a batch may take; then the run ends

    def __post_init__(self) -> None:
        check_choices("data", self)
        check(
            len(self.crop_scale) == 2 and 0.0 < self.crop_scale[0] <= self.crop_scale[1] <= 1.0,
            f"data.crop_scale={self.crop_scale} must be (lo, hi) with 0 < lo <= hi <= 1; (1.0, 1.0) is the centre crop",
        )
        check(
            len(self.mix_weights) in (0, 1 + len(self.mix_shards)) and all(weight > 0 for weight in self.mix_weights),
            f"data.mix_weights={self.mix_weights} must be a positive number for each of the"
            f" {1 + len(self.mix_shards)} shard sets, or none",
        )
        check(
            len({self.shards, *self.mix_shards}) == 1 + len(self.mix_shards),
            f"data.mix_shards={self.mix_shards} and data.shards='{self.shards}' name a shard set twice",
        )
        check_not_negative("data", self, "num_workers", "max_bad_records")
        check_positive("data", self, "wait_limit")
        check(self.question_length > 2, f"data.question_length={self.question_length} must be at least 3")

    @property
    def shard_sets(self) -> tuple[str, ...]:
        """The folders of all shard sets to train on."""
        return self.shards, *self.mix_shards
