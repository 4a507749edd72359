"""README.md is short, and what README.md and docs/ point at exists."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from readme_commands import PAGES, ROOT, name, without_blocks

FILE = re.compile(r"(?:common|data|docs|main|tests|tool)/[\w/.-]+\.(?:py|sh|sbatch|ya?ml|json|npz|safetensors|jpg|png)")


def links(page: Path) -> list[str]:
    """Where the links and images of a page lead within the repository."""
    found = re.findall(r"\]\(([^)\s]+)\)", without_blocks(page))
    return [link for link in found if not link.startswith("https://")]


def anchors(page: Path) -> set[str]:
    """What GitHub calls the headings of a page in its address."""
    headings = re.findall(r"^#+ (.+)$", without_blocks(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def dead_links(page: Path) -> list[str]:
    dead = []
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or anchor and anchor not in anchors(target):
            dead.append(link)
    return dead


def test_the_readme_takes_ten_minutes():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    assert len(text.split()) <= 1500


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_to_files_and_headings_that_exist(page: Path):
    assert dead_links(page) == []


def test_a_dead_link_is_noticed(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A heading\n[a](page.md) [b](#a-heading) [c](page.md#another) [d](missing.md)\n")
    assert dead_links(page) == ["page.md#another", "missing.md"]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_files_that_a_page_names_exist(page: Path):
    named = set(FILE.findall(page.read_text(encoding="utf-8")))
    assert [file for file in sorted(named) if not (ROOT / file).exists()] == []


def test_the_index_leads_to_every_page():
    index = ROOT / "docs" / "README.md"
    listed = {(index.parent / link).resolve() for link in links(index)}
    assert {page for page in PAGES if page != index} <= listed


@pytest.mark.slow
def test_the_page_on_prediction_files_shows_what_its_commands_print(tmp_path):
    """To 2 mm: another processor settles some hands in another pose."""
    page = (ROOT / "docs" / "predictions.md").read_text(encoding="utf-8")
    program = next(text for text in re.findall(r"```python\n(.*?)```", page, re.S) if "resting.npz" in text)
    program = program.replace("output/small", f"{tmp_path}/small").replace("resting.npz", f"{tmp_path}/resting.npz")

    def call(*words: object) -> str:
        command = [sys.executable, *map(str, words)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    call("tool/make_synthetic.py", "--out", tmp_path / "small", "--frames", 200, "--seed", 0)
    call("-c", program)
    printed = call("tool/evaluate.py", tmp_path / "resting.npz", "--set", f"data.root={tmp_path / 'small'}",
                   "data.filter=all")

    def numbers(text: str) -> dict[str, float]:
        return {name: float(value) for name, value in re.findall(r"^(M\w+(?: for [a-z ]+)?): ([\d.]+) mm$", text, re.M)}

    assert len(numbers(page)) == 7 and "20 frames" in page and "20 frames" in printed
    assert numbers(printed) == pytest.approx(numbers(page), abs=2)
