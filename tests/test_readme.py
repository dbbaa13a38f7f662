"""What README and CONTRIBUTING show is run, and what they name exists."""

import re
import shutil
from pathlib import Path

import pytest
from command_line import python
from typer.testing import CliRunner

from qfml.cli import app

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "ARCHITECTURE.md", "CHANGELOG.md")]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


SCRIPTS = [
    pytest.param(code, id=f"{page.name}-{number}")
    for page in PAGES
    for number, code in enumerate(blocks(page, "python"))
]
SHELL_LINES = [
    line.split(" #")[0].strip() for page in PAGES for code in blocks(page, "sh") for line in code.splitlines()
]


@pytest.mark.parametrize("code", SCRIPTS)
def test_a_shown_script_runs(code, tmp_path):
    if (ROOT / "configs").is_dir():
        shutil.copytree(ROOT / "configs", tmp_path / "configs")
    done = python(code, cwd=tmp_path)
    assert done.code == 0, done.err


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_of_the_repository(page):
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)|src=\"([^\"]+)\"", page.read_text(encoding="utf-8"))
    local = [target for pair in targets for target in pair if target and "://" not in target]
    assert [target for target in local if not (ROOT / target).exists()] == []


def test_named_make_targets_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE))
    assert {"run", "test", "test-all", "check", "bench"} <= named
    assert named - targets == set()


def test_named_configs_exist():
    text = "\n".join(path.read_text(encoding="utf-8") for path in [*PAGES, ROOT / "Makefile"])
    named = set(re.findall(r"configs/[\w./-]+\.yaml", text))
    assert [name for name in sorted(named) if not (ROOT / name).is_file()] == []


def test_shown_commands_are_known():
    commands = {words[1] for line in SHELL_LINES if (words := line.split())[:1] == ["qfml"] and len(words) > 1}
    assert {"run", "resume"} <= commands
    for command in sorted(commands):
        done = CliRunner().invoke(app, [command, "--help"])
        assert done.exit_code == 0, done.output


def test_every_shown_install_is_constrained():
    installs = [line for line in SHELL_LINES if "pip install" in line]
    installs += [line for line in (ROOT / "Makefile").read_text().splitlines() if "pip install" in line]
    assert len(installs) >= 3
    assert [line for line in installs if not re.search(r"-c (benchmarks/peers/)?constraints\.txt", line)] == []
