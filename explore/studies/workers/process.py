"""A worker process of the local engine: lines of JSON in on stdin, lines of JSON out on stdout.

It imports what is heavy before it says that it is ready, and ends when its parent does.
"""

from __future__ import annotations

import importlib
import os
import queue
import signal
import sys
import threading

READY = b"ready\n"


def main() -> None:
    """Serve trials until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    replies = os.dup(1)
    os.dup2(2, 1)  # nothing else may write between the replies
    run_trial = importlib.import_module("explore.studies.trial").run_trial
    asks: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(asks,), daemon=True).start()
    _send(replies, READY)
    while True:
        _send(replies, (run_trial(asks.get()) + "\n").encode())


def _read(asks: queue.SimpleQueue[str]) -> None:
    for line in sys.stdin:
        asks.put(line)
    os._exit(0)  # nobody is left to read the reply of a trial under way


def _send(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


if __name__ == "__main__":
    main()
