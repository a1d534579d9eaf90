"""The pages: every link to a file leads somewhere."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "experiments" / "results").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text())
    files = [link for link in links if "://" not in link]
    missing = [link for link in files if not (page.parent / link).exists()]
    assert not missing


def test_every_result_is_linked_or_named():
    text = " ".join(page.read_text() for page in PAGES)
    pages = [page for page in PAGES if page.name != "README.md"]
    unnamed = [page.name for page in pages if page.name not in text.replace(f"# {page.name}", "")]
    assert not unnamed
