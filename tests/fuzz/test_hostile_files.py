"""Hostile files, and what fuzzing has found: each is read, or refused in one line, in bounded time and memory."""

import json
import re
import resource
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from targets import TARGETS, check

CORPUS = Path(__file__).with_name("corpus")
ANNOTATIONS = [name for name in TARGETS if name.partition("_")[0] in (
    "captions", "msrvtt", "didemo", "lsmdc", "webvid", "vidal", "lavis",
)]  # fmt: skip
SECONDS, MEGABYTES = 5.0, 400  # that reading one of these files may take, far more than any needs
ATTACKS = {
    "empty": b"",
    "nul": b"\0" * 64,
    "not utf-8": b"\xff\xfe\xfa\n" * 8,
    "utf-16": "video,caption\na,b\n".encode("utf-16"),
    "nested list": b"[" * 100_000 + b"]" * 100_000,
    "nested object": b'{"a":' * 100_000,
    "nested in a list of objects": b'[{"video": ' + b"[" * 100_000,
    "number of 100,000 digits": b'[{"video": "a", "caption": "b", "start": ' + b"9" * 100_000 + b"}]",
    "number that is no float": b'[{"video": "a", "caption": "b", "start": ' + b"9" * 400 + b"}]",
    "control characters": b"video,caption\n\x1b[2J\x07\x08.mp4,\x1b]0;title\x07\n",
    "column of control characters": b"\x1b[2J\r\x0b\x85,\xe2\x80\xa8\n",
    "caption of two megabytes": b"video,caption\na.mp4," + b"word " * 400_000 + b"\n",
    "name of two megabytes": b"video,caption\n" + b"n" * 2_000_000 + b",text\n",
    "column of two megabytes": b"n" * 2_000_000 + b",text\n",
    "header that says it is long": b"\xff\xff\xff\xff\xff\xff\xff\x7f{}",
    "half of a surrogate pair": b'[{"video": "\\ud800.mp4", "caption": "\\udc00", "\\ud800": 1}]',
}


def bounded(target: str, data: bytes, folder: Path) -> None:
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    check(TARGETS[target], data, folder)
    assert time.process_time() - began < SECONDS
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < MEGABYTES


@pytest.mark.parametrize("target", TARGETS)
def test_hostile_file_is_refused_in_one_line_or_read(target: str, tmp_path: Path) -> None:
    for data in ATTACKS.values():
        bounded(target, data, tmp_path)


NAMES_OF_FILES = [
    "n" * 5000,
    "a\0b",
    "../../../../etc/passwd",
    "/etc/passwd",
    "\x1b[2J\r",
    "a/" * 500,
    "~root/x",
    "{}%s",
]


def with_texts(content: Any, text: str) -> Any:
    """JSON with this in place of every text that is a value."""
    if isinstance(content, dict):
        return {name: with_texts(value, text) for name, value in content.items()}
    if isinstance(content, list):
        return [with_texts(value, text) for value in content]
    return text if isinstance(content, str) else content


@pytest.mark.parametrize("name", NAMES_OF_FILES, ids=range(len(NAMES_OF_FILES)))
def test_hostile_name_in_an_annotation_is_refused_in_one_line_or_taken_as_a_name(name: str, tmp_path: Path) -> None:
    for target in ANNOTATIONS:
        for seed in TARGETS[target].seeds():
            if TARGETS[target].file.endswith(".json"):
                data = json.dumps(with_texts(json.loads(seed), name)).encode()
            else:
                lines = seed.decode("utf-8-sig").splitlines()
                lines[-1] = re.sub(r"[\w.]+", lambda _: name, lines[-1])
                data = "\n".join(lines).encode()
            bounded(target, data, tmp_path / target)


@pytest.mark.parametrize("target", TARGETS)
def test_what_fuzzing_has_found_stays_mended(target: str, tmp_path: Path) -> None:
    for data in TARGETS[target].seeds():
        check(TARGETS[target], data, tmp_path)
    for file in sorted((CORPUS / target).glob("*")):
        bounded(target, file.read_bytes(), tmp_path)


NAMES = st.sampled_from([
    "video", "caption", "start", "end", "group", "question", "answer", "video_id", "sentences", "videos", "split",
    "description", "folder", "polish_mplug", "weight_map", "model", "preparation", "vision", "schema", "number",
    "shape", "queries", "step", "segments", "path", "row", "files", "settings", "",
])  # fmt: skip
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)
JSON_TARGETS = sorted(name for name, target in TARGETS.items() if Path(target.file).suffix == ".json")


@pytest.mark.parametrize("target", JSON_TARGETS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=ANYTHING)
def test_json_of_any_shape_is_read_or_refused(target: str, tmp_path: Path, content: object) -> None:
    check(TARGETS[target], json.dumps(content).encode(), tmp_path)
