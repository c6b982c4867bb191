"""Turns Ctrl-C and SIGTERM into a flag that the training loop reads between updates."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def noted_interrupts() -> Iterator[Callable[[], bool]]:
    """Yields a function that returns whether Ctrl-C or SIGTERM has come. Only the first one is caught; a second one
    acts as usual. Outside the main thread it catches nothing.
    """
    noted = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield noted.is_set
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(signum: int, frame: Any) -> None:
        del signum, frame
        noted.set()
        restore()

    for number in before:
        signal.signal(number, note)
    try:
        yield noted.is_set
    finally:
        restore()
