"""Feeds mutated files to every parser, guided by coverage (atheris): `make fuzz`. What is found goes to the corpus."""

import argparse
import hashlib
import os
import re
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import NoReturn

import atheris

with atheris.instrument_imports(include=["data_pipeline", "stgt_jax", "experiments"]):
    from targets import TARGETS, check

CORPUS = Path(__file__).with_name("corpus")
SECONDS_A_FILE = 20  # after which one counts as a hang
MEGABYTES = 4096  # of memory, likewise
LONGEST_FILE = 4096  # bytes, or twice the longest seed


def fuzz(name: str, runs: int, seconds: float, seed: int, folder: Path) -> None:
    """Does not return: atheris ends the process, with status 0 where nothing was found."""
    target, seeds = TARGETS[name], folder / "seeds"
    seeds.mkdir(parents=True)
    kept = [path.read_bytes() for path in sorted((CORPUS / name).glob("*"))]
    for number, content in enumerate([*target.seeds(), *kept]):
        (seeds / str(number)).write_bytes(content)
    longest = max(LONGEST_FILE, *(2 * path.stat().st_size for path in seeds.iterdir()))

    def one(data: bytes) -> None:
        try:
            check(target, data, folder / "place")
        except BaseException:
            (CORPUS / name / f"new-{hashlib.sha1(data).hexdigest()}").write_bytes(data)
            raise

    limits = [f"-runs={runs}"] if runs else [f"-max_total_time={max(1, round(seconds))}"]
    atheris.Setup(
        [sys.argv[0], *limits, f"-seed={seed}", f"-timeout={SECONDS_A_FILE}", f"-rss_limit_mb={MEGABYTES}",
         f"-max_len={longest}", f"-artifact_prefix={CORPUS / name}/new-", str(seeds)],
        one,
    )  # fmt: skip
    atheris.Fuzz()


def in_child(name: str, runs: int, seconds: float, seed: int, folder: Path) -> NoReturn:
    """Fuzzes in a forked process, which must not run what its parent does at its end."""
    log = os.open(folder.with_suffix(".log"), os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    status = 0
    try:
        fuzz(name, runs, seconds, seed, folder)
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
        status = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=0, help="executions over all parsers; 0: as many as there is time")
    parser.add_argument("--seconds", type=float, default=60.0, help="for all parsers together")
    parser.add_argument("--only", default=",".join(TARGETS), help="names of parsers, with commas")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="parsers at a time")
    options = parser.parse_args()
    names = options.only.split(",")
    if unknown := set(names) - set(TARGETS):
        parser.error(f"--only: no parser {', '.join(sorted(unknown))}; there are {', '.join(TARGETS)}")
    shares = sum(TARGETS[name].share for name in names)
    started, running, found, executed = time.monotonic(), dict[int, str](), [], 0
    with tempfile.TemporaryDirectory(prefix="stgt_fuzz_", dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as top:
        waiting = list(names)
        while waiting or running:
            if waiting and len(running) < options.jobs:
                name = waiting.pop(0)
                (CORPUS / name).mkdir(exist_ok=True)
                runs = max(1, round(options.runs * TARGETS[name].share / shares)) if options.runs else 0
                if (pid := os.fork()) == 0:
                    seconds = options.seconds * options.jobs / len(names)
                    in_child(name, runs, seconds, options.seed, Path(top, name))
                running[pid] = name
                continue
            pid, status = os.wait()
            name = running.pop(pid)
            said = Path(top, f"{name}.log").read_text(errors="replace")
            done = max(map(int, re.findall(r"^#(\d+)\t", said, re.MULTILINE)), default=0)
            executed += done
            print(f"{name}: {done:,} executions, {'nothing found' if status == 0 else 'FOUND'}", flush=True)
            if status:
                found.append(name)
                print("\n".join(said.splitlines()[-30:]))
            elif not any((CORPUS / name).iterdir()):
                (CORPUS / name).rmdir()
            shutil.rmtree(Path(top, name), ignore_errors=True)
    print(f"{executed:,} executions in {time.monotonic() - started:.0f} s, seed {options.seed}")
    if found:
        print(f"found in: {', '.join(found)}; the files are tests/fuzz/corpus/*/new-*: name them, and mend the parser")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
