"""What a process says of its memory is its own."""

import subprocess
import sys

import torch

from contentv.kernels.device import peak_memory_mib

HELD = 700
"""MiB, more than a process takes that has imported torch and done nothing."""


def test_a_process_does_not_begin_with_the_peak_of_the_one_that_started_it():
    held = bytearray(b"x") * (HELD * 2**20)
    assert peak_memory_mib(torch.device("cpu")) > HELD
    program = "import torch; from contentv.kernels import device; print(device.peak_memory_mib(torch.device('cpu')))"
    child = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, check=True, text=True)
    assert 50 < float(child.stdout) < HELD < len(held)
