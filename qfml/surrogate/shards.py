"""Files of labels: Parquet with its provenance inside, whole or not there at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from qfml.errors import DataError
from qfml.files import replace_file, write_whole

__all__ = ["Shard", "read_shard", "shard_path", "write_shard", "write_whole"]

KEY = b"qfml.labels"
VALUE, STD_ERROR, LAW, WEIGHT = "value", "std_error", "law", "weight"
GRADIENT, GRADIENT_STD_ERROR = "gradient.", "gradient_std_error."  # and the name of the input


@dataclass(frozen=True, eq=False)
class Shard:
    """The labels of one file.

    Args:
        inputs: in natural units, shape `(N, d)`.
        value: in the unit of the target.
        std_error: the same, 0 of exact labels.
        gradient: derivatives by the inputs, `(N, d)`, or None.
        gradient_std_error: the same, or None.
        law: number of each row's law.
        weight: importance weight of each row.
        about: provenance, as JSON types; `inputs` names the columns, `left_out` counts what has no label, by reason.
    """

    inputs: np.ndarray
    value: np.ndarray
    std_error: np.ndarray
    gradient: np.ndarray | None
    gradient_std_error: np.ndarray | None
    law: np.ndarray
    weight: np.ndarray
    about: dict[str, Any]

    def __len__(self) -> int:
        return len(self.value)


def shard_path(folder: Path, number: int) -> Path:
    """The file of a shard."""
    return folder / f"part-{number:05d}.parquet"


def write_shard(shard: Shard, path: Path) -> None:
    """Write a shard as a file, whole or not at all."""
    names = list(shard.about["inputs"])
    columns: dict[str, np.ndarray] = {name: shard.inputs[:, i] for i, name in enumerate(names)}
    columns |= {VALUE: shard.value, STD_ERROR: shard.std_error}
    for prefix, table in ((GRADIENT, shard.gradient), (GRADIENT_STD_ERROR, shard.gradient_std_error)):
        if table is not None:
            columns |= {prefix + name: table[:, i] for i, name in enumerate(names)}
    columns |= {LAW: shard.law, WEIGHT: shard.weight}
    about = json.dumps({**shard.about, "n_rows": len(shard)})  # in its own order: that of the box is that of the inputs
    table = pa.table({name: np.ascontiguousarray(column) for name, column in columns.items()})
    table = table.replace_schema_metadata({KEY: about.encode()})
    replace_file(path, lambda beside: pq.write_table(table, beside, write_page_checksum=True, compression="zstd"))


def read_shard(path: Path) -> Shard:
    """Read a shard and check that it is whole.

    Raises:
        DataError: no file, a damaged one, one that holds no labels, or numbers that are not finite.
    """
    about = _about(path)
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            table = file.read()
        columns = {name: np.asarray(table.column(name).to_numpy()) for name in table.column_names}
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} is damaged: {error}; remove it, and make the labels again") from error
    names = list(about["inputs"])
    missing = [name for name in (*names, VALUE, STD_ERROR, LAW, WEIGHT) if name not in columns]
    if missing or table.num_rows != about["n_rows"]:
        what = f"has no column {missing[0]}" if missing else f"has {table.num_rows} rows, not {about['n_rows']}"
        raise DataError(f"{path} is damaged: it {what}; remove it, and make the labels again")
    for name, column in columns.items():
        if name != LAW and not np.isfinite(column).all():
            row = int(np.flatnonzero(~np.isfinite(column))[0])
            raise DataError(f"{path}: `{name}` must be finite, got {column[row]} in row {row}; make the labels again")
    return Shard(
        inputs=_stacked(columns, names),
        value=columns[VALUE],
        std_error=columns[STD_ERROR],
        gradient=_stacked(columns, [GRADIENT + name for name in names]),
        gradient_std_error=_stacked(columns, [GRADIENT_STD_ERROR + name for name in names]),
        law=columns[LAW].astype(np.int64),
        weight=columns[WEIGHT],
        about=about,
    )


def _stacked(columns: Mapping[str, np.ndarray], names: list[str]) -> Any:
    if names[0] not in columns:
        return None
    return np.stack([columns[name].astype(np.float64) for name in names], axis=-1)


def _about(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise DataError(f"there are no labels at {path}; make them with `make_labels`")
    try:
        metadata = pq.read_schema(path).metadata or {}
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} is damaged: {error}; remove it, and make the labels again") from error
    try:
        about = json.loads(metadata[KEY])
        _ = about["inputs"], about["n_rows"], about["hash"], about["shard"]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} holds no labels: its metadata lack `{KEY.decode()}`") from error
    return about
