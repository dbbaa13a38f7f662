"""The wheel holds the library, all of it, and nothing else."""

import configparser
import email
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("pricers", "qfml")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Built from a copy, so that neither stale build folders nor parallel tests meddle; without any network."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in (*PACKAGES, "tests", "benchmarks", "configs"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [
        sys.executable,
        "-m",
        "build",
        "--no-isolation",
        "--wheel",
        "--outdir",
        str(source / "dist"),
        str(source),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = (source / "dist").glob("*.whl")
    return zipfile.ZipFile(path)


def metadata(wheel: zipfile.ZipFile, name: str) -> str:
    (path,) = (entry for entry in wheel.namelist() if entry.endswith(f".dist-info/{name}"))
    return wheel.read(path).decode()


def test_top_level_names_are_exactly_the_two_packages(wheel):
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(PACKAGES)
    assert set(metadata(wheel, "top_level.txt").split()) == set(PACKAGES)


def test_every_file_of_the_packages_is_there(wheel):
    # a package that is not listed in pyproject.toml, or a data file without a pattern, would be left behind
    files = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    shipped = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert shipped == files


def test_every_folder_with_code_is_a_package():
    folders = {path.parent for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_types_are_shipped_and_tests_are_not(wheel):
    names = wheel.namelist()
    assert {"qfml/py.typed", "pricers/py.typed"} <= set(names)
    assert [name for name in names if "test" in Path(name).name or "conftest" in name] == []


def test_the_command_and_the_licence_come_along(wheel):
    entry_points = configparser.ConfigParser()
    entry_points.read_string(metadata(wheel, "entry_points.txt"))
    assert dict(entry_points["console_scripts"]) == {"qfml": "qfml.cli:main"}
    header = email.message_from_string(metadata(wheel, "METADATA"))
    assert header["License-Expression"] == "MIT"
    assert header["Requires-Python"] == ">=3.11"
    assert any(name.endswith("licenses/LICENSE") for name in wheel.namelist())


def test_no_dependency_names_a_place(wheel):
    header = email.message_from_string(metadata(wheel, "METADATA"))
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert [
        text for text in (*header.get_all("Requires-Dist", []), *pins) if "@" in text or "/" in text or "+" in text
    ] == []
    assert [pin for pin in pins if pin.count("==") != 1] == []
    assert "torch==2.13.0" in pins
