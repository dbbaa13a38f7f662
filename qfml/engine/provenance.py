"""What a result came from: versions, machine, threads, seeds, hashes of data and settings, git revision."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

_PACKAGES = ("qfml", "torch", "numpy", "polars", "safetensors")
_REVISION = re.compile(r"^[0-9a-f]{40}(?:[0-9a-f]{24})?$")
_GIT_SECONDS = 5.0


def provenance(
    *, seeds: Sequence[int], data_hash: str, config_hash: str, threads: int, folder: Path | None = None
) -> dict[str, Any]:
    """All that is needed to make a result again, as JSON types.

    Args:
        seeds: of everything that was drawn.
        data_hash: of the data.
        config_hash: of the settings.
        threads: that torch may use; the sums of a large matrix product depend on their number.
        folder: whose git revision is recorded; the working directory if omitted.

    Returns:
        "versions", "platform", "threads", "seeds", "data_hash", "config_hash" and "git": "revision" and "dirty", or
        None outside a repository.

    Example:
        >>> found = provenance(seeds=[0, 1], data_hash="ab12", config_hash="cd34", threads=2)
        >>> found["seeds"], found["threads"], sorted(found["versions"])[:3]
        ([0, 1], 2, ['numpy', 'polars', 'python'])
    """
    hashes = {"data_hash": data_hash, "config_hash": config_hash}
    revision = git_revision(Path.cwd() if folder is None else folder)
    return environment(threads) | {"seeds": sorted(set(seeds))} | hashes | {"git": revision}


def environment(threads: int | None = None) -> dict[str, Any]:
    """Versions, platform and number of threads."""
    found: dict[str, Any] = {"versions": dict(_versions()), "platform": platform.platform()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        found["gpu"] = torch.cuda.get_device_name()
    return found | {"threads": torch.get_num_threads() if threads is None else threads}


@cache
def _versions() -> tuple[tuple[str, str | None], ...]:
    return ("python", platform.python_version()), *((name, _version(name)) for name in _PACKAGES)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:  # run from a folder of sources
        return None


def git_revision(folder: Path) -> dict[str, Any] | None:
    """The commit that `folder` is at; None if it is in no repository, or the repository has no commit yet.

    The revision is read from the files of `.git`. Only "dirty" asks git, in a way that runs no hook and writes nothing:
    whether a tracked file differs from the commit; None if git cannot say.
    """
    found = _find_repository(folder.resolve())
    if found is None:
        return None
    root, git = found
    try:
        revision = _head(git)
    except (OSError, UnicodeDecodeError):
        return None
    return None if revision is None else {"revision": revision, "dirty": _dirty(root)}


def _find_repository(folder: Path) -> tuple[Path, Path] | None:
    """The root of the working tree around `folder`, and its git folder."""
    for root in (folder, *folder.parents):
        git = root / ".git"
        if git.is_dir():
            return root, git
        if git.is_file():  # a linked working tree or a submodule
            target = git.read_text(errors="replace").removeprefix("gitdir:").strip()
            return root, (root / target).resolve()
    return None


def _head(git: Path) -> str | None:
    head = (git / "HEAD").read_text().strip()
    if not head.startswith("ref:"):
        return head if _REVISION.match(head) else None
    name = head.removeprefix("ref:").strip()
    shared = git / "commondir"  # branches of a linked working tree are those of the main one
    common = (git / shared.read_text().strip()).resolve() if shared.is_file() else git
    for place in (git, common):
        path = (place / name).resolve()
        if path.is_relative_to(place.resolve()) and path.is_file():
            revision = path.read_text().strip()
            return revision if _REVISION.match(revision) else None
    packed = common / "packed-refs"
    lines = packed.read_text().splitlines() if packed.is_file() else []
    matching = [line.split(" ")[0] for line in lines if line.endswith(f" {name}")]
    return matching[0] if matching and _REVISION.match(matching[0]) else None


def _dirty(root: Path) -> bool | None:
    quiet = ("-c", "core.fsmonitor=false", "-c", f"core.hooksPath={os.devnull}")
    command = ["git", "--no-optional-locks", *quiet, "-C", str(root), "status", "--porcelain"]
    command += ["--untracked-files=no", "--ignore-submodules=all"]
    plain = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(command, capture_output=True, timeout=_GIT_SECONDS, check=False, env=plain)
    except (OSError, subprocess.SubprocessError):  # no git, or a repository too large to wait for
        return None
    return bool(done.stdout.strip()) if done.returncode == 0 else None
