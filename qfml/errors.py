"""The few errors a caller would catch.

Every error that the user can mend derives from `UserError`: its message names the thing, the rule, the value and the
way out, and the command line prints it without a traceback (exit code 2). Anything else is a defect of ours (exit 1).
"""

from __future__ import annotations

__all__ = ["CheckpointError", "ConfigError", "DataError", "Interrupted", "MissingExtraError", "SplitError", "UserError"]


class UserError(ValueError):
    """Something the user can mend; the message says how."""


class ConfigError(UserError):
    """A configuration key or value that is not valid."""


class DataError(UserError):
    """Data that break a stated rule: the message names column, rule, count and first offending rows."""


class SplitError(UserError):
    """A split that cannot be made: no times, or a fold that ends up empty."""


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged or not ours."""


class MissingExtraError(UserError):
    """An optional dependency is not installed."""

    def __init__(self, module: str, extra: str) -> None:
        super().__init__(f"`{module}` is not installed; it comes with the extra `{extra}`: pip install 'qfml[{extra}]'")


class Interrupted(Exception):  # noqa: N818  (a signal, not a failure: the run can be resumed)
    """Training stopped on a signal after writing a checkpoint; `signal_number` is the signal that asked for it."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by signal {signal_number}")
        self.signal_number = signal_number
