"""A process that makes shards: `python -m qfml.surrogate.worker_process FOLDER`, numbers of shards on its input.

Started by `qfml.surrogate.workers`; answers each number by one line of JSON and ends with its input.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from qfml.errors import UserError
from qfml.surrogate.labels import make_file, read_settings


def main(place: Path, numbers: Iterable[str], answers: Any) -> None:
    """Make the shards whose numbers are asked for."""
    torch.set_num_threads(1)
    problem, labels, points = read_settings(place)
    for line in numbers:
        number, error = int(line), ""
        try:
            make_file(problem, labels, place, number, points)
        except UserError as refused:
            error = str(refused)
        try:
            answers.write(json.dumps({"shard": number, "error": error}) + "\n")
            answers.flush()
        except BrokenPipeError:  # whoever asked was killed; the shard is there
            os._exit(0)  # without the flush at exit, which would complain of the same


if __name__ == "__main__":
    own = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever else is printed is no answer
    main(Path(sys.argv[1]), sys.stdin, own)
