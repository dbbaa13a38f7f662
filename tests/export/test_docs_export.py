"""docs/export.md: its tables name what there is."""

import re
from pathlib import Path

from qfml.export.transforms import EXPORTED_SKLEARN
from qfml.losses import LOSSES

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "export.md"
TEXT = PAGE.read_text(encoding="utf-8")


def test_the_tables_name_all_there_is_and_nothing_else():
    outputs = TEXT.split("## What an output is")[1].split("\n## ")[0]
    assert set(re.findall(r"`([a-z_]+)`", "".join(re.findall(r"^\| (`.*?) \|", outputs, re.MULTILINE)))) == set(LOSSES)
    named = TEXT.split("<!-- sklearn -->")[1].split("\n\n")[0]
    assert tuple(re.findall(r"`(\w+)`", named)) == EXPORTED_SKLEARN
