"""When a request may start, and the end of all waiting when the stage stops."""

from __future__ import annotations

import threading
import time


class StoppedError(Exception):
    """The stage stops, so this request is not made."""


class Pace:
    """At most ``per_minute`` requests over all threads, evenly spaced, and none while the server wants a pause."""

    def __init__(self, per_minute: float | None) -> None:
        self._interval = 60 / per_minute if per_minute else 0.0  # seconds
        self._next = time.monotonic()
        self._lock = threading.Lock()
        self._stopped = threading.Event()

    def wait(self) -> None:
        """Return when a request may start; it counts from then."""
        while True:
            with self._lock:
                now = time.monotonic()
                pause = self._next - now
                if pause <= 0:
                    self._next = now + self._interval
            self.sleep(max(0.0, pause))
            if pause <= 0:
                return

    def hold(self, seconds: float) -> None:
        """Let no request of any thread start for ``seconds``."""
        with self._lock:
            self._next = max(self._next, time.monotonic() + seconds)

    def sleep(self, seconds: float) -> None:
        """Wait for ``seconds``; raises :class:`StoppedError` as soon as the stage stops."""
        if self._stopped.wait(seconds):
            raise StoppedError

    def stop(self) -> None:
        """End every wait of every thread, now and later."""
        self._stopped.set()
