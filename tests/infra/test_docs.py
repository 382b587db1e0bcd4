"""The pages: made of what there is, their links lead somewhere, and what they tell to type works."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dataworth.command.reference import options_page

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "infra").rglob("*.md")])
LINK = re.compile(r"\]\(([^)\s]+)\)")


def anchors(page: Path) -> set[str]:
    """Of the headings of a page, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for link in LINK.findall(page.read_text()):
        if link.startswith("https://"):
            continue
        place, _, anchor = link.partition("#")
        target = (page.parent / place).resolve() if place else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_is_reached_from_the_front_door():
    reached, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in reached:
            continue
        reached.add(page)
        links = [link.partition("#")[0] for link in LINK.findall(page.read_text())]
        waiting += [(page.parent / link).resolve() for link in links if link.endswith(".md")]
    assert reached >= set(PAGES)


def test_the_page_of_options_is_that_of_the_configuration():
    kept = (ROOT / "infra" / "docs" / "options.md").read_text()
    assert kept == options_page(), "python -m dataworth.command.reference > infra/docs/options.md"


@pytest.mark.slow
def test_the_lines_of_the_front_door_run(tmp_path, checkpoints, corpus_file, queries_file):
    (program,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (tmp_path / "checkpoint").symlink_to(checkpoints["gpt2"])
    corpus_file.rename(tmp_path / "docs.jsonl")
    if queries_file != tmp_path / "queries.jsonl":
        queries_file.rename(tmp_path / "queries.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "docs.jsonl").read_text().splitlines()]
    assert set(rows[0]) == {"id", "source", "text"}
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "report.html").stat().st_size > 10_000
