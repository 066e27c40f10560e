"""`python -m benchmarks._watched MODULE ...` is `python -m MODULE ...` that ends with the process that started it."""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
import time


def _end_with(parent: int) -> None:
    """Ends this process group when its parent is gone, so that no piece of a killed run writes beside the next one."""
    while os.getppid() == parent:
        time.sleep(0.2)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    if os.name == "posix":
        threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
