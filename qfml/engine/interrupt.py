"""Signals as a flag that the training loop reads between two steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """Set by a signal; `signal_number` is 0 until then."""

    def __init__(self) -> None:
        self.signal_number = 0


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turn Ctrl-C and SIGTERM into a request to stop after the present step; a second Ctrl-C stops at once.

    A supervisor may send SIGTERM more than once, and wants the checkpoint all the same.
    """
    request = StopRequest()

    def ask(number: int, frame: FrameType | None) -> None:
        if request.signal_number and number == signal.SIGINT:
            raise KeyboardInterrupt
        request.signal_number = request.signal_number or number

    if threading.current_thread() is not threading.main_thread():  # only the main thread may handle signals
        yield request
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
