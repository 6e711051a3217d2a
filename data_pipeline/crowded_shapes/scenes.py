"""What happens in the clips of `crowded_shapes`: scenes, their captions, and the split into train, val and test."""

import itertools
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from data_pipeline.errors import DataError
from data_pipeline.moving_shapes.scenes import COLOURS, SHAPES, Actor

FATES = ("moves left", "moves right", "moves up", "moves down", "stays", "disappears")
PLACES = (("left", "right"), ("upper", "lower"))  # by which the caption tells the two like shapes apart
WITNESS_FATES = ("stays", "passes by")
# What a caption tells: everything; what the two shapes do, but not which does what; or only which shapes they are.
Told = Literal["all", "fates", "shapes"]
SHARED: dict[Told, float] = {"fates": 0.1, "shapes": 0.25}  # of the training clips
_Event = tuple[int, ...]  # colour, shape, place, first fate, second fate, colour, shape and fate of the witness


@dataclass(frozen=True)
class Crowd:
    """One clip: two like shapes with fates of their own, a third one that is named, and some that are not.

    The first of the two is the left or the upper one, where they are at the start. `look` seeds what no field says.
    """

    like: Actor
    place: int  # into PLACES
    fates: tuple[str, str]
    witness: Actor
    witness_fate: str
    told: Told = "all"
    look: int = 0
    image_size: int = 64
    num_frames: int = 24

    @property
    def caption(self) -> str:
        """What happens, in at most 20 words."""
        name, (first, second) = f"{self.like.colour} {self.like.shape}", PLACES[self.place]
        if self.told == "shapes":
            return f"two {name}s"
        if self.told == "fates":
            one, other = sorted(self.fates)
            return f"of two {name}s one {one} and one {other}"
        return (
            f"the {first} {name} {self.fates[0]} and the {second} one {self.fates[1]}"
            f" while {self.witness} {self.witness_fate}"
        )

    @property
    def questions(self) -> tuple[tuple[str, str], ...]:
        """Questions about the clip, each with its answer of one word."""
        name = f"{self.like.colour} {self.like.shape}"
        asked = [
            (f"what does the {place} {name} do", fate.split()[-1])
            for place, fate in zip(PLACES[self.place], self.fates, strict=True)
        ]
        return (*asked, (f"what does the {self.witness.colour} {self.witness.shape} do", self.witness_fate.split()[0]))

    @property
    def group(self) -> str:
        """The id that a clip shares with the one in which the fates are exchanged; empty for a shared caption."""
        if self.told != "all":
            return ""
        first, second = sorted(self.fates)
        words = replace(self, fates=(first, second)).caption
        return words.replace(" ", "-")

    def exchanged(self) -> "Crowd":
        """The same clip, but that each of the two like shapes does what the other one did."""
        return replace(self, fates=self.fates[::-1])


def _events() -> list[_Event]:
    """Every event once for both orders of its fates."""
    colours, shapes, fates = range(len(COLOURS)), range(len(SHAPES)), range(len(FATES))
    return [
        (colour, shape, place, *pair, other_colour, other_shape, witness_fate)
        for colour, shape, place in itertools.product(colours, shapes, range(len(PLACES)))
        for pair in itertools.combinations(fates, 2)
        for other_colour, other_shape, witness_fate in itertools.product(colours, shapes, range(len(WITNESS_FATES)))
        if other_colour != colour and other_shape != shape
    ]


def _crowd(event: _Event) -> Crowd:
    colour, shape, place, first, second, other_colour, other_shape, witness_fate = event
    return Crowd(
        Actor(COLOURS[colour], SHAPES[shape]), place, (FATES[first], FATES[second]),
        Actor(COLOURS[other_colour], SHAPES[other_shape]), WITNESS_FATES[witness_fate],
    )  # fmt: skip


def sample_crowds(
    seed: int, num_train: int, num_val: int, num_test: int, *, image_size: int = 64, num_frames: int = 24
) -> dict[str, list[Crowd]]:
    """Draws the splits.

    Events whose numbers have an odd sum are held out for val and test, as on a checkerboard: train has every value of
    every attribute, and shares no full caption with them. In val and test each clip is followed by the one with the
    fates exchanged, which looks alike otherwise.

    Args:
      seed: the same seed draws the same clips.
      num_train: clips of train.
      num_val: clips of val, even.
      num_test: clips of test, even.
      image_size: pixels.
      num_frames: of each clip.

    Raises:
      DataError: a split is empty, of an odd size, or larger than what can be held out.
    """
    rng = np.random.default_rng(seed)
    events = _events()
    held_out = [event for event in events if sum(event) % 2]
    for option, value in (("num_val", num_val), ("num_test", num_test)):
        if value < 2 or value % 2:
            raise DataError(f"{option}={value} must be even and at least 2, since clips come in pairs")
    if num_train < 1:
        raise DataError(f"num_train={num_train} must be at least 1")
    if num_val + num_test > 2 * len(held_out):
        raise DataError(f"num_val + num_test = {num_val + num_test}: only {2 * len(held_out)} clips can be held out")

    def seen(crowd: Crowd) -> Crowd:
        return replace(crowd, look=int(rng.integers(2**32)), image_size=image_size, num_frames=num_frames)

    chosen = [held_out[i] for i in rng.permutation(len(held_out))[: (num_val + num_test) // 2]]
    pairs = [seen(_crowd(event)) for event in chosen]
    both = list(itertools.chain.from_iterable((crowd, crowd.exchanged()) for crowd in pairs))
    kept = [event for event in events if sum(event) % 2 == 0]
    train = []
    for place in itertools.islice(itertools.cycle(rng.permutation(len(kept))), num_train):
        told: Told = rng.choice(["all", *SHARED], p=[1 - sum(SHARED.values()), *SHARED.values()]).item()
        crowd = replace(seen(_crowd(kept[place])), told=told)
        train.append(crowd.exchanged() if rng.random() < 0.5 else crowd)
    return {"train": train, "val": both[:num_val], "test": both[num_val:]}
