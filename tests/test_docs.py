"""docs/*.md: the examples run, the links lead somewhere, the lines are short.

python -P tests/test_docs.py docs/PAGE.md    # runs the examples as a user would, without the checks of conftest
"""

import doctest
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
LEAST = {
    "training": 120,
    "hedging": 25,
    "export": 20,
    "calibration": 25,
    "surrogates": 20,
}  # examples of each page that has some
FAST = ("training",)


def examples(page):
    return doctest.DocTestParser().get_examples(page.read_text(encoding="utf-8"))


def run_the_page(page):
    """Run all examples in one namespace; what they print otherwise than the page says is printed."""
    module = types.ModuleType("docs_page")  # dataclasses look their module up
    sys.modules[module.__name__] = module
    text = page.read_text(encoding="utf-8")
    parsed = doctest.DocTestParser().get_doctest(text, vars(module), page.name, str(page), 0)
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    print(doctest.DocTestRunner(verbose=False, optionflags=flags).run(parsed))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in sorted(LEAST)]
)
def test_the_examples_of_a_page_print_what_it_says(name, tmp_path):
    page = ROOT / "docs" / f"{name}.md"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-P", "-W", "error::UserWarning", __file__, str(page)]  # tests/pricers is not pricers
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, cwd=tmp_path)
    n_examples = len(examples(page))
    assert n_examples >= LEAST[name]
    assert done.stdout == f"TestResults(failed=0, attempted={n_examples})\n", done.stdout + done.stderr
    assert done.returncode == 0, done.stderr


def test_every_page_with_examples_is_run():
    assert {page.stem for page in PAGES if examples(page)} - {"purging", "pricers"} == set(LEAST)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_to_files_and_headings(page):
    text = page.read_text(encoding="utf-8")
    headings = {
        re.sub(r"[^\w -]", "", line.lstrip("# ").lower()).replace(" ", "-")
        for line in text.splitlines()
        if line.startswith("#")
    }
    for target in re.findall(r"\]\(([^)]+)\)", text):
        file, _, heading = target.partition("#")
        if "://" not in target:
            assert (page.parent / file).exists() if file else heading in headings, target


@pytest.mark.parametrize("name", sorted(LEAST))
def test_lines_are_short(name):
    lines = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8").splitlines()
    allowed = ("|", "qfml.errors.")
    assert [line for line in lines if len(line) > 120 and not line.startswith(allowed)] == []


if __name__ == "__main__":
    run_the_page(Path(sys.argv[1]))
