"""What happens in the clips of `moving_shapes`: scenes, their captions, and the split into train and test.

Every event is defined once, played forward. Its twin is the same event played backward, with the reversed caption. So
the frames of both come from one distribution, and only their order tells the captions apart. An event and its twin form
a group, and the whole group is in train or in test.
"""

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from data_pipeline.errors import DataError

COLOURS = ("red", "green", "blue", "yellow", "purple", "white")
SHAPES = ("circle", "square", "triangle", "star")
SIZES = ("small", "large")

# Share of each kind of event in both splits. Where a kind has too few test scenes, other kinds take its share.
KIND_SHARES = {
    "move": 0.28,
    "grow": 0.08,
    "turn": 0.08,
    "bounce": 0.08,
    "appear_in_turn": 0.20,
    "move_in_turn": 0.18,
    "cross": 0.10,
}

# {0} is the first actor, {1} what it does, {2} the second actor, {3} what that does.
WORDINGS = {
    "move": ("{0} moves {1}", "{0} travels {1}"),
    "grow": ("{0} {1}", "{0} {1} in size"),
    "turn": ("{0} turns {1}", "{0} rotates {1}"),
    "bounce": ("{0} bounces up and down", "{0} bounces on the floor"),
    "appear_in_turn": ("first {0} appears, then {2} appears", "{0} appears, followed by {2}"),
    "move_in_turn": ("{0} moves {1}, then {2} moves {3}", "first {0} moves {1}, then {2} {3}"),
    "cross": ("{0} and {2} cross", "{0} and {2} pass each other"),
}
SYMMETRIC_KINDS = ("bounce", "cross")  # look the same played backward, so they have no twin and no group

_TWIN_MOTIONS = (
    ("from left to right", "from right to left"),
    ("from top to bottom", "from bottom to top"),
    ("grows", "shrinks"),
    ("clockwise", "counter-clockwise"),
)
DIRECTIONS = _TWIN_MOTIONS[0] + _TWIN_MOTIONS[1]
_REVERSED = dict(_TWIN_MOTIONS) | {backward: forward for forward, backward in _TWIN_MOTIONS} | {"": ""}


@dataclass(frozen=True)
class Actor:
    """One coloured shape. `size` is empty if the caption does not name it."""

    colour: str
    shape: str
    size: str = ""

    def __str__(self) -> str:
        return " ".join(word for word in ("a", self.size, self.colour, self.shape) if word)


@dataclass(frozen=True)
class Scene:
    """One clip: an event, whether it is played backward, and a seed for what the caption does not say.

    `motions` tells what each actor does when the event is played forward; it is empty if the kind of event tells it.
    """

    kind: str
    actors: tuple[Actor, ...]
    motions: tuple[str, ...]
    backward: bool = False
    wording: int = 0
    look: int = 0  # seeds background, positions, speed and shades
    image_size: int = 96
    num_frames: int = 24

    @property
    def caption(self) -> str:
        """The event in at most 20 words."""
        return WORDINGS[self.kind][self.wording].format(*itertools.chain.from_iterable(self._told))

    @property
    def questions(self) -> tuple[tuple[str, str], ...]:
        """Questions about the clip, each with its answer of one word.

        Those that begin with "where" or "which" have another answer when the clip is played backward.
        """
        told = self._told
        (first, _), (last, _) = told[0], told[-1]
        asked = [("how many shapes are there", "one" if len(told) == 1 else "two")]
        for actor, motion in told:
            name = f"{actor.colour} {actor.shape}"
            asked.append((f"what shape is the {actor.colour} one", actor.shape))
            if first.shape != last.shape or len(told) == 1:
                asked.append((f"what colour is the {actor.shape}", actor.colour))
            if motion in DIRECTIONS:
                _, start, _, end = motion.split()  # from left to right
                asked += [(f"where does the {name} come from", start), (f"where does the {name} move to", end)]
            elif motion:
                asked.append((f"which change does the {name} make", motion))
        if len(told) == 2 and self.kind not in SYMMETRIC_KINDS:
            asked += [("which colour comes first", first.colour), ("which colour comes last", last.colour)]
            if first.shape != last.shape:
                asked.append(("which shape comes first", first.shape))
        return tuple(asked)

    @property
    def _told(self) -> list[tuple[Actor, str]]:
        """Each actor with what it does, in the order of time."""
        told = list(zip(self.actors, self.motions, strict=True))
        if self.backward:
            return [(actor, _REVERSED[motion]) for actor, motion in reversed(told)]
        return told

    @property
    def group(self) -> str:
        """The id that all clips of an event and of its twin share; empty for events without a twin."""
        if self.kind in SYMMETRIC_KINDS:
            return ""
        return replace(self, backward=False, wording=0).caption.replace(",", "").replace(" ", "-")

    def reversed(self) -> "Scene":
        """Returns the twin: the same clip with its frames in reverse order."""
        return replace(self, backward=not self.backward)


def _events(kind: str) -> list[tuple[tuple[int, ...], Scene]]:
    """Returns every event of a kind, played forward, with the parity key of its attributes."""
    looks = list(itertools.product(range(len(COLOURS)), range(len(SHAPES))))
    if kind in ("appear_in_turn", "move_in_turn", "cross"):
        pairs = [(a, b) for a, b in itertools.combinations(looks, 2) if a[0] != b[0]]
        motions = list(itertools.product(DIRECTIONS, repeat=2)) if kind == "move_in_turn" else [("", "")]
        return [
            ((*a, *b, i), Scene(kind, tuple(Actor(COLOURS[c], SHAPES[s]) for c, s in (a, b)), motion))
            for a, b in pairs
            for i, motion in enumerate(motions)
        ]
    if kind == "turn":  # nobody can see a circle turn
        looks = [(c, s) for c, s in looks if SHAPES[s] != "circle"]
    sizes = SIZES if kind in ("move", "bounce") else ("",)
    forward = {"move": DIRECTIONS[::2], "grow": ("grows",), "turn": ("clockwise",), "bounce": ("",)}[kind]
    return [
        ((c, s, i, j), Scene(kind, (Actor(COLOURS[c], SHAPES[s], size),), (motion,)))
        for c, s in looks
        for i, size in enumerate(sizes)
        for j, motion in enumerate(forward)
    ]


def _allocate(total: int, capacity: Mapping[str, int], step: Mapping[str, int]) -> dict[str, int]:
    """Divides `total` clips among the kinds by KIND_SHARES, `step` at a time, up to the capacity of each kind."""
    counts = dict.fromkeys(KIND_SHARES, 0)
    while (left := total - sum(counts.values())) > 0:
        open_kinds = [kind for kind in counts if counts[kind] < capacity[kind]]
        kind = max(open_kinds, key=lambda kind: KIND_SHARES[kind] * total - counts[kind])
        counts[kind] += min(left, step[kind], capacity[kind] - counts[kind])
    return counts


def _groups(kind: str, rng: np.random.Generator) -> tuple[list[list[Scene]], list[list[Scene]]]:
    """Returns the shuffled groups of a kind: those that may be held out, and those that always train.

    Groups whose attribute indices sum to an odd number may be held out, as on a checkerboard. So train keeps every
    value of every attribute for every kind of event, however many groups are held out.
    """
    events = _events(kind)
    boards: tuple[list[list[Scene]], list[list[Scene]]] = ([], [])
    for i in rng.permutation(len(events)):
        attributes, scene = events[i]
        twins = [scene] if kind in SYMMETRIC_KINDS else [scene, scene.reversed()]
        boards[sum(attributes) % 2 == 0].append(twins)
    return boards


def _with_wordings(scenes: Iterable[Scene], wordings: Iterable[int]) -> list[Scene]:
    return [replace(scene, wording=int(wording)) for scene, wording in zip(scenes, wordings, strict=False)]


def _split(rng: np.random.Generator, num_test: int) -> tuple[list[Scene], dict[str, list[Scene]]]:
    """Returns the test scenes, no two of the same meaning, and the remaining scenes for training, by kind."""
    boards = {kind: _groups(kind, rng) for kind in KIND_SHARES}
    size = {kind: len(eligible[0]) for kind, (eligible, _) in boards.items()}
    capacity = {kind: len(eligible) * size[kind] for kind, (eligible, _) in boards.items()}
    most = sum(capacity.values())
    if num_test > most:
        raise DataError(f"num_test={num_test}: only {most} captions can be held out; use {most} or fewer")
    test: list[Scene] = []
    train: dict[str, list[Scene]] = {}
    for kind, count in _allocate(num_test, capacity, size).items():
        eligible, kept = boards[kind]
        num_held_out = -(-count // size[kind])
        held_out = list(itertools.chain.from_iterable(eligible[:num_held_out]))[:count]
        # An event and its twin share one wording: their captions differ only in the words for the order.
        wordings = rng.integers(len(WORDINGS[kind]), size=num_held_out).repeat(size[kind])
        test += _with_wordings(held_out, wordings)
        left = kept + eligible[num_held_out:]
        train[kind] = list(itertools.chain.from_iterable(left[i] for i in rng.permutation(len(left))))
    return test, train


def _shuffled(scenes: list[Scene], rng: np.random.Generator, image_size: int, num_frames: int) -> list[Scene]:
    looks = rng.integers(2**32, size=len(scenes))
    return [
        replace(scenes[i], look=int(look), image_size=image_size, num_frames=num_frames)
        for i, look in zip(rng.permutation(len(scenes)), looks, strict=True)
    ]


def sample_scenes(
    seed: int, num_train: int, num_test: int, *, image_size: int = 96, num_frames: int = 24
) -> tuple[list[Scene], list[Scene]]:
    """Draws the two splits.

    No two test scenes have the same caption or meaning. Whole groups are held out, so the splits share no caption.
    Train repeats a caption, with another look and maybe another wording, only after all others have occurred.

    Returns:
      Train scenes and test scenes, each in random order.

    Raises:
      DataError: a split is empty, or more test captions are asked for than can be held out.
    """
    for option, value in (("num_train", num_train), ("num_test", num_test)):
        if value < 1:
            raise DataError(f"{option}={value} must be at least 1")
    rng = np.random.default_rng(seed)
    test, captions = _split(rng, num_test)
    train: list[Scene] = []
    for kind, count in _allocate(num_train, dict.fromkeys(captions, num_train), dict.fromkeys(captions, 1)).items():
        wordings = rng.integers(len(WORDINGS[kind]), size=count)
        train += _with_wordings(itertools.cycle(captions[kind]), wordings)
    return _shuffled(train, rng, image_size, num_frames), _shuffled(test, rng, image_size, num_frames)
