"""Trains, validates, saves and builds data for a long time, and watches what the processes hold: `make soak`."""

import argparse
import contextlib
import dataclasses
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from lab import Lab, last_step, make_data, marked_processes, metrics
from processes import environment

WARM_UP = 0.25  # of the time
MAX_GROWTH = 0.02  # of memory, after that
MAX_MORE = 2.0  # descriptors or threads on average: each checkpoint and each build has some for a moment
SAMPLE_SECONDS = 5.0
SAVE_EVERY = 1000  # steps, about 45 seconds; each validation writes a checkpoint, too
BUILD_FOR_EVER = """
import itertools, sys
from pathlib import Path
from data_pipeline.build import build_shards
for number in itertools.count(1):
    build_shards(sys.argv[1], sys.argv[2], split="train", num_kept_frames=4, resize=32, max_text_length=24,
                 num_workers=2, overwrite=True, progress=False)
    Path(sys.argv[3]).write_text(str(number))
"""


@dataclasses.dataclass(frozen=True)
class Sample:
    """What a process, or several together, hold."""

    megabytes: float  # of memory that is no copy of a file: what is mapped from files depends on other programs
    files: int  # descriptors
    threads: int

    def __add__(self, other: "Sample") -> "Sample":
        return Sample(self.megabytes + other.megabytes, self.files + other.files, self.threads + other.threads)


def sample(pid: int) -> Sample:
    """Raises OSError where the process has ended."""
    place = Path(f"/proc/{pid}")
    memory = dict(line.split()[:2] for line in (place / "smaps_rollup").read_text().splitlines()[1:])
    threads = (place / "status").read_text().partition("Threads:")[2].split()[0]
    kilobytes = int(memory["Pss_Anon:"]) + int(memory["Pss_Shmem:"])
    return Sample(kilobytes / 1024, len(os.listdir(place / "fd")), int(threads))


@dataclasses.dataclass(frozen=True)
class Change:
    """A figure early after the warm-up, and at the end."""

    before: float
    after: float

    @property
    def growth(self) -> float:
        """Share by which it has grown."""
        return self.after / self.before - 1.0


def change(figures: list[float], summary: Callable[[list[float]], float]) -> Change:
    """The summary of the first and of the last quarter of what was seen after the warm-up."""
    warm = figures[int(len(figures) * WARM_UP) :]
    quarter = max(1, len(warm) // 4)
    return Change(summary(warm[:quarter]), summary(warm[-quarter:]))


def watch(lab: Lab, minutes: float) -> tuple[dict[str, list[Sample]], dict[str, int], list[str]]:
    """Returns what was seen of each process, how much work they did, and what went wrong."""
    seen, wrong = defaultdict[str, list[Sample]](list), list[str]()
    workdir, builds, mark = lab.place("run"), lab.place("builds"), uuid.uuid4().hex
    options = ["--num_steps=100000000", f"--checkpoint_every={SAVE_EVERY}", f"--eval_every={SAVE_EVERY}"]
    training = lab.train(workdir, *options, "--log_every=20")
    captions = lab.folder / "clips" / "train" / "captions.csv"
    building = subprocess.Popen(
        [sys.executable, "-c", BUILD_FOR_EVER, captions, lab.place("built"), builds],
        env=environment() | {"STGT_FAULT_MARK": mark}, start_new_session=True,
    )  # fmt: skip
    until = time.monotonic() + 60 * minutes
    try:
        while time.monotonic() < until and not wrong:
            time.sleep(SAMPLE_SECONDS)
            workers = [pid for pid in training.workers() if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()]
            with contextlib.suppress(OSError):
                seen["training"].append(sample(training.process.pid))
                seen["its workers"].append(sum(map(sample, workers), Sample(0.0, 0, 0)))
                seen["data build"].append(sample(building.pid))
            wrong += [f"training ended: {training.last_line}"] if training.process.poll() is not None else []
            wrong += ["data build ended"] if building.poll() is not None else []
        training.signal(signal.SIGTERM)
        if (status := training.ends(60.0)) != 0:
            wrong.append(f"training ended with {status}: {training.last_line}")
    finally:
        for pid in marked_processes(mark):
            os.kill(pid, signal.SIGKILL)
    done = {
        "steps": last_step(workdir),
        "validations": sum("validation/t2v_r1" in line for line in metrics(workdir)),
        "checkpoints": last_step(workdir) // SAVE_EVERY,
        "builds": int(builds.read_text()) if builds.exists() else 0,
    }
    return dict(seen), done, wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--json", type=Path, help="file for every sample")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="stgt_soak_") as folder:
        lab = Lab(Path(folder), False, random.Random(0))
        try:
            make_data(lab)
            seen, done, wrong = watch(lab, options.minutes)
        finally:
            lab.close()
    print("| process | memory, MB | growth | file descriptors | threads |\n|---|---|---|---|---|")
    for name, samples in seen.items():
        memory = change([one.megabytes for one in samples], statistics.median)
        files, threads = (
            change([getattr(one, name) for one in samples], statistics.fmean) for name in ("files", "threads")
        )
        counts = " | ".join(f"{count.before:.0f} to {count.after:.0f}" for count in (files, threads))
        print(f"| {name} | {memory.before:.0f} to {memory.after:.0f} | {memory.growth:.1%} | {counts} |")
        if memory.growth > MAX_GROWTH:
            wrong.append(f"{name}: memory grew by {memory.growth:.1%}")
        if max(files.after - files.before, threads.after - threads.before) > MAX_MORE:
            wrong.append(f"{name}: file descriptors or threads grew")
    print(", ".join(f"{number:,} {what}" for what, number in done.items()), f"in {options.minutes:g} minutes")
    if options.json:
        options.json.write_text(json.dumps({n: [dataclasses.astuple(s) for s in one] for n, one in seen.items()}))
    print("\n".join(wrong), file=sys.stderr)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
