"""Trackers that write a text file: one line a record, no line twice."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from qfml.engine.tracking.base import Number, Tracker
from qfml.errors import UserError
from qfml.files import replace_text


class Lines:
    """A text file of lines that each have a key; a line whose key is already there takes the other's place."""

    def __init__(self, path: Path, resume: bool, header: tuple[str, ...], key: Callable[[str], Hashable]) -> None:
        self.path, self.header = path, header
        self.lines: dict[Hashable, str] = {}
        if path.exists() and not resume:
            raise UserError(
                f"{path} already exists: give each training a file of its own, or pass `resume=True` to go on with the "
                "file of a training that is resumed"
            )
        if path.exists():
            self._read(key)
        self._rewrite()

    def put(self, key: Hashable, line: str) -> None:
        """Add a line at the end, or in place of the one with its key."""
        old = self.lines.get(key)
        if line == old:  # a resumed training repeats the epochs that it has
            return
        self.lines[key] = line
        if old is None:
            with self.path.open("a", encoding="utf-8", newline="") as file:
                file.write(line + "\n")
        else:
            self._rewrite()

    def _read(self, key: Callable[[str], Hashable]) -> None:
        *whole, _ = self.path.read_text(encoding="utf-8").split("\n")  # a kill may have cut the last line
        n_header = len(self.header)
        if tuple(whole[:n_header]) != self.header[: len(whole)]:
            raise UserError(
                f"{self.path} is not a file of this tracker: line 1 is {whole[0]!r}, not {self.header[0]!r}"
            )
        for number, line in enumerate(whole[n_header:], n_header + 1):
            try:
                self.lines[key(line)] = line
            except (ValueError, LookupError, TypeError, StopIteration):
                raise UserError(
                    f"{self.path} is not a file of this tracker: line {number} is {line[:80]!r}; choose another path"
                ) from None

    def _rewrite(self) -> None:
        """The whole file anew, so that a kill leaves the old one or the new one."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = "".join(line + "\n" for line in (*self.header, *self.lines.values()))
        replace_text(self.path, text)


@dataclass(eq=False)
class JsonLines(Tracker):
    """One JSON object a line: each epoch, each logged step, and how each member ended.

    A line holds `member`, and `epoch` or `step` with the numbers, or `status` and what else is known at the end. JSON
    has no numbers that are not finite: they are the texts "nan", "inf" and "-inf", which `float` reads.

    Args:
        path: the file, new.
        resume: go on with the file of a training that is resumed. What is there already is not written again; where a
            repeated step or epoch gives other numbers, the new ones replace the old.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "training.jsonl"
        >>> tracker = JsonLines(path)
        >>> tracker.begin(n_members=1, max_epochs=1)
        >>> tracker.epoch(0, {"epoch": 1, "train_loss": 0.5, "val_loss": None}, stopped=True)
        >>> print(path.read_text(), end="")
        {"member": 0, "epoch": 1, "train_loss": 0.5, "val_loss": null}
    """

    kind: ClassVar[str] = "json_lines"
    path: str | Path
    resume: bool = False
    _lines: Lines = field(init=False, repr=False)

    def begin(self, n_members: int, max_epochs: int) -> None:
        self._lines = Lines(Path(self.path), self.resume, (), lambda line: _json_key(json.loads(line)))

    def write(self, member: int, axis: str, at: int, values: Mapping[str, Number]) -> None:
        self._put({"member": member, axis: at} | {name: _json_number(x) for name, x in values.items()})

    def summary(self, member: int, values: Mapping[str, Any]) -> None:
        self._put({"member": member} | {name: _json_number(x) for name, x in values.items()})

    def _put(self, record: dict[str, Any]) -> None:
        self._lines.put(_json_key(record), json.dumps(record, allow_nan=False))


def _json_key(record: dict[str, Any]) -> Hashable:
    member, axis = record["member"], list(record)[1]  # the second, for a logged number may be called "epoch" too
    if axis not in ("epoch", "step", "status"):
        raise KeyError(axis)
    return member, axis, None if axis == "status" else record[axis]


def _json_number(value: Any) -> Any:
    return repr(value) if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(eq=False)
class Csv(Tracker):
    """One number a line, under the header `member,axis,at,name,value`; `axis` is "epoch" or "step".

    Every number has a line of its own because members need not have the same ones; `pandas.read_csv(path).pivot(...)`
    makes a table of them. A value is empty where there is none, and "nan" where it is not a number. How a member ended
    is no number, and not told; `JsonLines` has it.

    Args:
        path: the file, new.
        resume: go on with the file of a training that is resumed. What is there already is not written again; where a
            repeated step or epoch gives other numbers, the new ones replace the old.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "training.csv"
        >>> tracker = Csv(path)
        >>> tracker.begin(n_members=1, max_epochs=1)
        >>> tracker.epoch(0, {"epoch": 1, "train_loss": 0.5, "val_loss": None}, stopped=True)
        >>> print(path.read_text(), end="")
        member,axis,at,name,value
        0,epoch,1,train_loss,0.5
        0,epoch,1,val_loss,
    """

    kind: ClassVar[str] = "csv"
    path: str | Path
    resume: bool = False
    _lines: Lines = field(init=False, repr=False)

    def begin(self, n_members: int, max_epochs: int) -> None:
        self._lines = Lines(Path(self.path), self.resume, ("member,axis,at,name,value",), _csv_key)

    def write(self, member: int, axis: str, at: int, values: Mapping[str, Number]) -> None:
        for name, value in values.items():
            name = name.replace("\n", "\\n").replace("\r", "\\r")  # a module may name its parameters so
            text = io.StringIO()
            csv.writer(text, lineterminator="").writerow([member, axis, at, name, value])
            self._lines.put((member, axis, at, name), text.getvalue())


def _csv_key(line: str) -> Hashable:
    member, axis, at, name, _ = next(csv.reader([line]))
    return int(member), axis, int(at), name
