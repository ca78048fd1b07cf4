"""How a run is started under a vendor's profiler. Imports no torch.

Sources: Nsight Systems user guide (capture ranges), Nsight Compute CLI (profiling start and stop, NVTX, sets), CANN 9.0
msprof (general command; msproftx data). tests/engine/test_profile_tools.py has nsys and ncu parse theirs.
"""

import shlex
import sys
from collections.abc import Sequence

from .config import ProfileConfig
from .run_files import profile_folder

RANK = "${RANK:-${SLURM_PROCID:-0}}"
"""Of torchrun, of srun, or none: the shell that starts a rank knows it."""


def under_tool(config: ProfileConfig, run: str, argv: Sequence[str]) -> str:
    """The shell command that starts one rank of `contentv train` with these arguments under `config.tool`."""
    train = f"{shlex.quote(sys.executable)} -m contentv.launchers.train {shlex.join(argv)}"
    folder = profile_folder(run, config.steps)
    output = f'{shlex.quote(str(folder))}/"{config.tool}-{RANK}"'
    made = f"mkdir -p {shlex.quote(str(folder))} && "
    if config.tool == "nsys":
        # The run starts and stops the recording by cudaProfilerStart and cudaProfilerStop.
        return (
            f"{made}nsys profile --trace=cuda,nvtx,osrt --capture-range=cudaProfilerApi --capture-range-end=stop "
            f"--force-overwrite=true --output={output} {train}"
        )
    if config.tool == "ncu":
        # A kernel is run a dozen times over for its counters: few steps, and a limit on waiting ranks to match.
        return (
            f"{made}ncu --profile-from-start=off --nvtx --set=roofline --target-processes=all --force-overwrite "
            f"--export={output} {train} --parallel.timeout-seconds 36000"
        )
    assert config.tool == "msprof", config.tool
    # Not by --application=, in which msprof takes a command apart by itself and knows no quotes.
    return f"{made}msprof --output={output} --msproftx=on {train}"
