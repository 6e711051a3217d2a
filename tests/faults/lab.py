"""What every fault needs: a shard set, real `stgt` processes, and a look at what they leave behind."""

import contextlib
import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from processes import environment
from small_recipe import SMALL

from data_pipeline.build import build_shards
from data_pipeline.moving_shapes import make_moving_shapes

LIMIT = 240.0  # seconds after which a process that should have ended counts as hanging
STEPS = 24
# Without the graph, whose split over a mesh tests/ops covers, it compiles in half the time.
TRAINING = [*SMALL, f"--num_steps={STEPS}", "--checkpoint_every=4", "--eval_every=12", "--num_workers=2",
            "--graph.variant=none", "--log_every=4"]  # fmt: skip


@dataclasses.dataclass
class Row:
    """A line of the table: what was done to the program, and what came of it."""

    fault: str
    tried: int = 0
    survived: int = 0
    lost: list[str] = dataclasses.field(default_factory=list)
    seconds: list[float] = dataclasses.field(default_factory=list)  # to recover, or to end with the right words
    not_tried: str = ""  # why

    @contextlib.contextmanager
    def attempt(self) -> Iterator[None]:
        """Counts what happens inside: it survives if nothing in it fails. An error of the test itself goes through."""
        self.tried += 1
        try:
            yield
        except Failure as failure:
            self.lost.append(str(failure))
        else:
            self.survived += 1


class Failure(Exception):  # noqa: N818  (it is what the table counts)
    """The program did not do what is promised."""


def require(condition: object, otherwise: str) -> None:
    """Raises Failure, with what went wrong, unless the condition holds."""
    if not condition:
        raise Failure(otherwise)


class Command:
    """One running `stgt` command, in a process group of its own."""

    def __init__(
        self, words: Sequence[object], said: Path, env: Mapping[str, str], wrapper: Sequence[str] = ()
    ) -> None:
        self.mark, self.said, self.started = uuid.uuid4().hex, said, time.monotonic()
        self.shared_memory_before = shared_memory()
        code = "from experiments.commands.main import main; exit(main())"
        command = [*wrapper, sys.executable, "-c", code, *map(str, words)]
        with said.open("w") as file:
            self.process = subprocess.Popen(
                command, env={**env, "STGT_FAULT_MARK": self.mark, "PYTHONFAULTHANDLER": "1"},
                stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True,
            )  # fmt: skip

    @property
    def text(self) -> str:
        """What it has said so far."""
        return self.said.read_text(errors="replace")

    @property
    def last_line(self) -> str:
        """The last line that it said."""
        return (self.text.strip().splitlines() or [""])[-1]

    def reaches(self, condition: Callable[[], object], what: str, within: float = LIMIT) -> None:
        """Waits until `condition` holds. Raises Failure where the process ends before, or it takes too long."""
        deadline = time.monotonic() + within
        while not condition():
            require(self.process.poll() is None, f"ended with {self.process.poll()} before {what}: {self.last_line}")
            require(time.monotonic() < deadline, f"no {what} within {within:.0f} s: {self.last_line}")
            time.sleep(0.002)

    def ends(self, within: float = LIMIT) -> int:
        """Returns its exit status. Raises Failure where it hangs."""
        try:
            return self.process.wait(within)
        except subprocess.TimeoutExpired:
            last_line = self.last_line
            self._print_stacks()
            self.kill_group()
            raise Failure(f"still running after {within:.0f} s: {last_line}") from None

    def _print_stacks(self) -> None:
        """Prints where each of its threads hangs; it ends by that."""
        before = len(self.text)
        self.signal(signal.SIGABRT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5.0)
        print(self.text[before:], file=sys.stderr)

    def signal(self, number: int, *, group: bool = False) -> None:
        """Sends a signal to the process, or to its whole group as a terminal does."""
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if group else os.kill)(self.process.pid, number)

    def kill_group(self) -> None:
        """Ends it and all that it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def leaves_nothing(self, within: float = 15.0) -> None:
        """Raises Failure where processes or shared memory of this command are still there after a while."""
        deadline = time.monotonic() + within
        while (left := marked_processes(self.mark)) or shared_memory() - self.shared_memory_before:
            if time.monotonic() > deadline:
                memory = sorted(shared_memory() - self.shared_memory_before)
                for pid in left:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                raise Failure(f"left {len(left)} processes and {len(memory)} shared-memory objects {memory[:2]}")
            time.sleep(0.05)

    def workers(self) -> list[int]:
        """The processes that it has started, by their ids."""
        return [pid for pid in marked_processes(self.mark) if pid != self.process.pid]


@dataclasses.dataclass
class Lab:
    """A folder with data, and how much to try."""

    folder: Path
    short: bool
    rng: random.Random
    _commands: list[Command] = dataclasses.field(default_factory=list)

    @property
    def shards(self) -> Path:
        """A shard set of 16 + 4 clips."""
        return self.folder / "shards"

    def times(self, full: int, short: int) -> int:
        """How often to try."""
        return short if self.short else full

    def place(self, name: str) -> Path:
        """A path that is not taken."""
        return self.folder / f"{name}_{uuid.uuid4().hex[:6]}"

    def start(self, *words: object, wrapper: Sequence[str] = (), **env: str) -> Command:
        """Starts `stgt` with these words."""
        said = self.folder / "said" / f"{len(self._commands)}.txt"
        said.parent.mkdir(exist_ok=True)
        self._commands.append(Command(words, said, environment() | env, wrapper))
        return self._commands[-1]

    def done(self, *words: object, **env: str) -> Command:
        """Runs `stgt` to its end; it must succeed."""
        command = self.start(*words, **env)
        status = command.ends()
        require(status == 0, f"`stgt {words[0]}` ended with {status}: {command.last_line}")
        return command

    def train(self, workdir: Path, *options: object, **kind: object) -> Command:
        """Starts a small training."""
        words = ["pretrain", "moving_shapes_stage1", "--workdir", workdir, "--data.shards", self.shards]
        return self.start(*words, *TRAINING, *options, **kind)  # type: ignore[arg-type]

    def reference(self) -> Path:
        """The folder of a training that nothing disturbed."""
        workdir = self.folder / "reference"
        if not workdir.exists():
            command = self.train(workdir)
            require(command.ends() == 0, f"the undisturbed run failed: {command.last_line}")
            command.leaves_nothing()
        return workdir

    def close(self) -> None:
        """Ends every process that is left."""
        for command in self._commands:
            command.kill_group()


def make_data(lab: Lab) -> None:
    """Makes the clips and the shard set."""
    clips = lab.folder / "clips"
    make_moving_shapes(clips, num_train=16, num_test=4, image_size=32, num_frames=8, progress=False)
    for split in ("train", "test"):
        build_shards(clips / split / "captions.csv", lab.shards, split=split, num_kept_frames=4, resize=32,
                     max_text_length=24, num_workers=0, progress=False)  # fmt: skip


def metrics(workdir: Path) -> list[dict[str, float]]:
    """The lines of metrics.jsonl that are whole."""
    file = workdir / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def last_step(workdir: Path) -> int:
    """The last step in the log; 0 before the first."""
    return int(max((line["step"] for line in metrics(workdir)), default=0))


def assert_same_run(workdir: Path, reference: Path) -> None:
    """Raises Failure unless a run has every step once, with the very numbers, weights and position of another."""
    for line, other in zip(metrics(workdir), metrics(reference), strict=False):
        require(line == other, f"step {line.get('step')} differs: {line} is not {other}")
    require(len(metrics(workdir)) == len(metrics(reference)), "steps are missing or repeated in metrics.jsonl")
    checksums = [
        (run / "checkpoints" / str(STEPS) / "checksums" / "metadata").read_text() for run in (workdir, reference)
    ]
    require(checksums[0] == checksums[1], f"weights, optimizer or position differ: {checksums}")


def shared_memory() -> set[str]:
    """The names of shared-memory objects and semaphores on this machine."""
    return set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()


def marked_processes(mark: str) -> list[int]:
    """The processes that a command has started, itself included, but for those that have ended."""
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdecimal():
            continue
        with contextlib.suppress(OSError):
            if mark.encode() in Path(f"/proc/{entry}/environ").read_bytes():
                state = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[0]
                if state != "Z":
                    found.append(int(entry))
    return found
