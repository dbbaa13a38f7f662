"""Every package that an install of qfml with any of its extras brings along is pinned."""

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
INSTALLS = {"": PROJECT["dependencies"]} | PROJECT["optional-dependencies"]


def plain(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def brought_along(needed, extras, found):
    """Add the names of all that `needed` brings along, as far as it is installed here."""
    for requirement in map(Requirement, needed):
        wanted = requirement.marker is None or any(requirement.marker.evaluate({"extra": e}) for e in extras or [""])
        key = plain(requirement.name), tuple(sorted(requirement.extras))
        if not wanted or key in found:
            continue
        found.add(key)
        try:
            brought_along(metadata.requires(requirement.name) or [], key[1], found)
        except metadata.PackageNotFoundError:
            continue


@pytest.mark.parametrize("extra", INSTALLS)
def test_all_that_comes_along_is_pinned(extra):
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {plain(line.split("==")[0]) for line in lines if "==" in line}
    found = set()
    brought_along(INSTALLS[extra], (), found)
    assert found
    assert sorted({name for name, _ in found} - pins) == []
