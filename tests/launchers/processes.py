"""Watching processes that tests started, or that those started."""

import time

import psutil


def all_end(processes, seconds=10) -> bool:
    """Whether all of them end within that time; one that only waits for its parent's look (a zombie) has ended."""
    deadline = time.monotonic() + seconds
    while any(map(is_alive, processes)):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
