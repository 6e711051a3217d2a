"""The documents hold together: cited sections exist, and so does what their links point to."""

import re
from pathlib import Path

from processes import ROOT

from data_pipeline.config import CLIP_TIME_LIMIT, WAIT_LIMIT
from experiments.commands.processes import Processes
from stgt_jax.distributed import JOIN_TIMEOUT
from stgt_jax.storage import ARRAYS_LIMIT, REACH_LIMIT, STORAGE_LIMIT
from stgt_jax.train.run_lock import BEAT_SECONDS

MODEL = ROOT / "docs" / "model.md"
SECTIONS = set(re.findall(r"^#+ (\d+(?:\.\d+)?)\.? ", MODEL.read_text(), re.MULTILINE))
FOLDERS = ("stgt_jax", "data_pipeline", "experiments", "tests", "docs")
DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]


def sources() -> list[Path]:
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*")]
    return DOCUMENTS + [path for path in files if path.suffix in (".py", ".sh", ".ipynb")]


def test_every_cited_section_of_the_model_exists():
    cited = {}  # section -> a file that cites it
    for path in sources():
        text = re.sub(r"\s+(?:# )?", " ", path.read_text())  # a citation may go over a line's end
        cited |= dict.fromkeys(re.findall(r"docs/model\.md section (\d+(?:\.\d+)?)", text), path)
    assert {"1", "2", "3", "4", "5", "6", "7"} <= SECTIONS
    assert len(cited) >= 7
    assert not {number: str(path) for number, path in cited.items() if number not in SECTIONS}


def test_sections_that_the_model_document_refers_to_exist():
    referred = re.findall(r"\((\d\.\d)(?:, (\d\.\d))?\)|sections? (\d(?:\.\d)?)(?: to (\d\.\d))?", MODEL.read_text())
    assert {number for numbers in referred for number in numbers if number} <= SECTIONS


def test_nothing_cites_a_specification_outside_the_repository():
    word = re.compile(r"\bSPEC" + r"\b")
    assert not [str(path) for path in sources() if word.search(path.read_text())]


def test_links_between_documents_lead_somewhere():
    links = [(path, link) for path in DOCUMENTS for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text())]
    local = [(path, link.split("#")[0]) for path, link in links if "://" not in link and not link.startswith("#")]
    assert local
    assert not [f"{path.name}: {link}" for path, link in local if not (path.parent / link).exists()]


def test_limits_of_waiting_are_those_of_the_code():
    table = (ROOT / "docs" / "faults.md").read_text().partition("## How long it waits")[2]
    seconds = [int(number) for number in re.findall(r"^\| .* \| (\d+) \| ", table, re.MULTILINE)]
    limits = [
        WAIT_LIMIT,
        STORAGE_LIMIT,
        ARRAYS_LIMIT,
        REACH_LIMIT,
        CLIP_TIME_LIMIT,
        JOIN_TIMEOUT,
        Processes().heartbeat_timeout,
        2 * BEAT_SECONDS,
    ]
    assert seconds == limits
