"""docs/export.md: its examples run, and its tables name what there is.

python tests/export/test_docs_export.py     # runs the examples as a user would, without the checks of conftest
"""

import doctest
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from qfml.export.transforms import EXPORTED_SKLEARN
from qfml.losses import LOSSES

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "export.md"
TEXT = PAGE.read_text(encoding="utf-8")


def run_the_page():
    """Run all examples in one namespace; what they print otherwise than the page says is printed."""
    page = doctest.DocTestParser().get_doctest(TEXT, {"__name__": "docs_export"}, PAGE.name, str(PAGE), 0)
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    print(doctest.DocTestRunner(verbose=False, optionflags=flags).run(page))


@pytest.mark.slow
def test_the_examples_of_the_page_print_what_it_says(tmp_path):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-W", "error::UserWarning", __file__]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, cwd=tmp_path)
    n_examples = len(doctest.DocTestParser().get_examples(TEXT))
    assert n_examples > 20
    assert done.stdout == f"TestResults(failed=0, attempted={n_examples})\n", done.stdout + done.stderr
    assert done.returncode == 0, done.stderr


def test_the_tables_name_all_there_is_and_nothing_else():
    outputs = TEXT.split("## What an output is")[1].split("\n## ")[0]
    assert set(re.findall(r"`([a-z_]+)`", "".join(re.findall(r"^\| (`.*?) \|", outputs, re.MULTILINE)))) == set(LOSSES)
    named = TEXT.split("<!-- sklearn -->")[1].split("\n\n")[0]
    assert tuple(re.findall(r"`(\w+)`", named)) == EXPORTED_SKLEARN


def test_lines_are_short():
    allowed = ("|", "qfml.errors.")
    assert [line for line in TEXT.splitlines() if len(line) > 120 and not line.startswith(allowed)] == []


if __name__ == "__main__":
    run_the_page()
