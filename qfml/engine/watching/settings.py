"""What of a training is watched."""

from __future__ import annotations

from dataclasses import dataclass

from qfml.errors import UserError

WATCHED = ("layers", "activations", "memory")


@dataclass(frozen=True)
class Profile:
    """Which steps are traced by torch's profiler, and into which file.

    Args:
        path: the file, in Chrome's trace format: open it in https://ui.perfetto.dev or chrome://tracing.
        first: the first step that is traced, counted from 1; the first ones of all are slower than the others.
        steps: how many are.

    Example:
        >>> Profile("trace.json", first=20, steps=2).last
        21
    """

    path: str
    first: int = 10
    steps: int = 3

    def __post_init__(self) -> None:
        for name in ("first", "steps"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UserError(f"`{name}` of a profile must be a whole number, at least 1, got {value!r}")
        if not self.path:
            raise UserError('`path` of a profile must name a file such as "trace.json", got an empty text')

    @property
    def last(self) -> int:
        """The last step that is traced."""
        return self.first + self.steps - 1


def check_watch(watch: tuple[str, ...], log_every: int | None) -> None:
    """Raise ValueError for what cannot be watched, or would never be told."""
    unknown = [name for name in watch if name not in WATCHED]
    if isinstance(watch, str) or unknown:
        raise UserError(f"`watch` must be a tuple of {', '.join(WATCHED)}, got {watch!r}")
    if log_every is None and set(watch) - {"memory"}:
        raise UserError(f"`watch` {', '.join(watch)} is told on log steps: set `log_every`, got None")
