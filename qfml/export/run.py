"""`qfml export`: the networks of a finished run as ONNX files in its folder."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from qfml import config
from qfml.calibration.inverse import InverseMap
from qfml.engine import load_fits
from qfml.errors import CheckpointError, UserError
from qfml.export.fits import export_fits
from qfml.export.hedgers import export_hedger
from qfml.export.inverse_maps import export_inverse_map
from qfml.export.model_file import Export
from qfml.export.surrogates import export_surrogate
from qfml.finished import read_metrics
from qfml.hedging import load_hedger
from qfml.surrogate import Surrogate

__all__ = ["export_run"]

_MEMBER = re.compile(r"(?:([0-9]{1,9}):)?([0-9]{1,18})\Z")


def export_run(folder: Any, out: Any = None, member: Any = None, *, say: Callable[[str], object] = print) -> list[Path]:
    """Write the networks of a finished run as ONNX files; older files of the same names are replaced.

    | run | files |
    |---|---|
    | `task: walk_forward` | `model.onnx`: the mean prediction of the last fold's seeds, as `qfml predict` takes it |
    | `task: surrogate` | `model.onnx` and `model_greeks.onnx` |
    | `task: calibration` with an inverse map | `model.onnx`: from vols to parameters |
    | `task: hedging` | `model.onnx`: one date of the policy; of several policies `model-0.onnx`, `model-1.onnx`, ... |

    Args:
        folder: of the run; or one that holds a saved surrogate, inverse map or hedger.
        out: where the files go; the run's own folder if omitted.
        member: of a walk-forward: "all" for each network in a file of its own, `model-fold3-seed0.onnx`; "3:0", or
            (3, 0), for that fold and seed alone; "0", or 0, for that seed of the last fold. Of a hedging run: "0", or
            0, for the policy of that number alone, as `model.onnx`; "all" for each in a file of its own.
        say: told about each file, a line at a time.

    Returns:
        The files.

    Raises:
        UserError: the run is not finished, holds no such network, or one that cannot be exported.
        CheckpointError: its files were changed, or the inverse map is not the one that the run has used.
    """
    folder = Path(folder)
    out = folder if out is None else Path(out)
    exports = _exported(folder, out, member)
    for export in exports:
        say(str(export))
    return [export.path for export in exports]


def _exported(folder: Path, out: Path, member: Any) -> list[Export]:
    saved = _saved_kind(folder)
    settings, metrics = ({}, {}) if saved else _finished(folder)
    task = saved or settings.get("task", "walk_forward")
    if task == "walk_forward":
        return _walk_forward(folder, out, member, settings, metrics)
    config_hash = metrics.get("config_hash")
    if task == "hedging":
        return _hedging(folder, out, member, config_hash)
    if member is not None:
        raise UserError(
            f"`member` chooses a network of a walk-forward or a hedging run, and this is a {task}: leave it out"
        )
    if task == "surrogate":
        place = folder if saved else folder / "surrogate"
        return export_surrogate(Surrogate.load(place), out, config_hash=config_hash)
    if task in ("calibration", "inverse_map"):
        found = InverseMap.load(folder) if saved else _run_s_map(folder, settings, metrics)
        return [export_inverse_map(found, out / "model.onnx", config_hash=config_hash)]
    raise UserError(f"a run of the task {task!r} holds no network to export")


def _saved_kind(folder: Path) -> str | None:
    """What a folder holds that is no run: "surrogate", "inverse_map", "hedging", or None."""
    path = folder / "state.json"
    if (folder / "config.yaml").exists() or not path.is_file():
        return None
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from None
    kinds = {"qfml.surrogate": "surrogate", "inverse_map": "inverse_map", "qfml.hedger": "hedging"}
    named = (state.get("format"), state.get("what")) if isinstance(state, dict) else ()
    return next((kinds[name] for name in named if isinstance(name, str) and name in kinds), None)


def _run_s_map(folder: Path, settings: Mapping[str, Any], metrics: Mapping[str, Any]) -> InverseMap:
    """The inverse map that a calibration has used: the very same, by its hash."""
    own, named = folder / "inverse", settings.get("inverse")
    if named is None and not own.exists():
        raise UserError(
            f"the calibration in {folder} holds no network: what it found is in its metrics.json; a surrogate or an "
            "inverse map is exported from its own folder"
        )
    if not own.exists() and not isinstance(named, str):
        raise UserError(f"{folder / 'config.yaml'} is damaged: `inverse` must be a folder, got {named!r}")
    networks = metrics.get("networks")
    noted = networks.get("inverse") if isinstance(networks, Mapping) else None
    wanted = noted.get("hash") if isinstance(noted, Mapping) else None
    if not isinstance(wanted, str):
        path = folder / "metrics.json"
        raise UserError(
            f"{path} lacks the hash of the inverse map, `networks.inverse.hash`: it is damaged; run it again"
        )
    place = own if own.exists() else Path(str(named))
    if not place.is_dir():
        begun = _begun_in(folder)
        start = "" if begun is None else f"; the run was started in {begun}"
        raise UserError(
            f"the run's inverse map lies in the folder {place}, which is not seen from {Path.cwd()}{start}: export the "
            "run from the directory in which it was started, or name the folder of the map itself"
        )
    found = InverseMap.load(place)
    if found.hash != wanted:
        raise CheckpointError(
            f"the inverse map in {place} has the hash {found.hash}, and the run in {folder} used {wanted}: "
            "restore it, run the calibration again, or export the map from its own folder"
        )
    return found


def _begun_in(folder: Path) -> str | None:
    """The directory in which a run was started, if it is noted."""
    try:
        return str(json.loads((folder / "inputs.json").read_text(encoding="utf-8"))["directory"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):  # it only helps to find the way
        return None


def _finished(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings and metrics of a finished run."""
    metrics = read_metrics(folder)
    settings = config.read_yaml(folder / "config.yaml")
    if not isinstance(metrics.get("config_hash"), str | None):
        path = folder / "metrics.json"
        raise UserError(f"{path} is damaged: `config_hash` must be text, got {metrics['config_hash']!r}; run it again")
    return settings, metrics


def _feature_names(path: Path, metrics: Mapping[str, Any]) -> list[str]:
    """What the networks of a walk-forward are given."""
    data = metrics.get("data")
    names = data.get("features") if isinstance(data, Mapping) else None
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path} lacks the names of the features, `data.features`: it is damaged; run it again")
    return names


def _walk_forward(
    folder: Path, out: Path, member: Any, settings: Mapping[str, Any], metrics: Mapping[str, Any]
) -> list[Export]:
    fits, extra = load_fits(folder / "model")
    members = [{"fold": int(each["fold"]), "seed": int(each["seed"])} for each in extra["members"]]
    data = settings.get("data")
    seen: dict[str, Any] = {
        "feature_names": _feature_names(folder / "metrics.json", metrics),
        "window": data.get("window") if isinstance(data, Mapping) else None,
        "label_unit": f"label {metrics['data'].get('label', '')}".strip(),
        "config_hash": metrics.get("config_hash"),
    }
    chosen = _chosen(members, member)
    own, named = [fits[i] for i in chosen], [members[i] for i in chosen]
    if member is None:
        return export_fits(own, out / "model.onnx", members=named, ensemble=True, **seen)
    single = len(chosen) == 1 and member != "all"
    paths = ["model.onnx"] if single else [f"model-fold{each['fold']}-seed{each['seed']}.onnx" for each in named]
    return export_fits(own, [out / name for name in paths], members=named, **seen)


def _hedging(folder: Path, out: Path, member: Any, config_hash: str | None) -> list[Export]:
    hedger = load_hedger(folder)
    count = len(hedger.members)
    if member is None or member == "all":
        chosen = list(range(count))
        single = count == 1 and member is None
    else:
        text = str(member)
        if isinstance(member, bool) or not (text.isascii() and text.isdigit() and int(text) < count):
            raise UserError(f'`member` must be "all" or the number of a policy, 0 to {count - 1}, got {member!r}')
        chosen, single = [int(text)], True
    paths = [out / "model.onnx"] if single else [out / f"model-{place}.onnx" for place in chosen]
    return export_hedger(hedger, paths, members=chosen, config_hash=config_hash)


def _chosen(members: Sequence[Mapping[str, int]], member: Any) -> list[int]:
    """Places of the networks that `member` means."""
    last = max(each["fold"] for each in members)
    if member == "all":
        return list(range(len(members)))
    if member is None:
        return [i for i, each in enumerate(members) if each["fold"] == last]
    text = ":".join(map(str, member)) if isinstance(member, (tuple, list)) else str(member)
    match = _MEMBER.match(text)
    if match is None:
        raise UserError(f'`member` must be "all", a seed such as "0", or "fold:seed" such as "3:0", got {member!r}')
    fold = last if match[1] is None else int(match[1])
    found = [i for i, each in enumerate(members) if (each["fold"], each["seed"]) == (fold, int(match[2]))]
    if not found:
        known = ", ".join(f"{each['fold']}:{each['seed']}" for each in members[:20])
        more = f" and {len(members) - 20} more" if len(members) > 20 else ""
        raise UserError(f"`member`: the run has no network {fold}:{match[2]} (fold:seed); it has {known}{more}")
    return found
