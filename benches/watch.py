"""A command timed from outside."""

import os
import subprocess
import time
from pathlib import Path


def watch(command, out):
    """Seconds, CPU seconds, peak memory in MB and wait status of a command that writes to the file `out`."""
    started = time.perf_counter()
    pid = subprocess.Popen(command, stdout=out.open("wb"), stderr=subprocess.DEVNULL).pid
    # The kernel's figure for a child begins with the memory of this Python, so the high-water mark
    # of the new program is read while it runs.
    peak, done, status = 0, 0, 0
    while not done:
        try:
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            peak = max([peak] + [int(line.split()[1]) / 1000 for line in lines if line.startswith("VmHWM")])
        except OSError:
            pass
        done, status, used = os.wait4(pid, os.WNOHANG)
        seconds = time.perf_counter() - started
        time.sleep(0.002)
    return seconds, used.ru_utime + used.ru_stime, peak, status
