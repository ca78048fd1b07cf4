"""The sbatch script of a run, as text: what a person reads who wants to know what the job does. Starts nothing.

    attempt's number -> where ranks meet -> node check -> training, one task a rank -> what its end means -> requeue

What an end means is decided in engine/restarts.py; the script only does it.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

NodeCheck = Literal["exclude", "stop", "off"]
BelowFloor = Literal["warn", "exclude"]
Runtime = Literal["pyxis", "apptainer"]
Device = Literal["cuda", "npu", "cpu"]


SET = ("PYTHONPATH", "CONTENTV_DEVICE", "MASTER_ADDR", "MASTER_PORT")
"""Environment variables that the script sets for the ranks."""


@dataclass(frozen=True, kw_only=True)
class Asking:
    """How one kind of device is asked for."""

    option: str
    """Of sbatch, with the number in place of N; empty: none."""
    settings: str
    """A line of the script."""
    apptainer: tuple[str, ...]
    """Options that let a container see it."""


ASKING: dict[str, Asking] = {
    "cuda": Asking(option="gpus-per-node=N", settings="export NCCL_DEBUG=${NCCL_DEBUG:-WARN}", apptainer=("--nv",)),
    "npu": Asking(
        option="gres=npu:N",
        settings="export HCCL_WHITELIST_DISABLE=1  # HCCL's limits and its order of sums the engine sets itself",
        apptainer=("--bind", "/usr/local/Ascend/driver,/usr/local/dcmi"),
    ),
    "cpu": Asking(option="", settings="", apptainer=()),
}


@dataclass(frozen=True, kw_only=True)
class Place:
    """Files of one sent job; all paths absolute."""

    runs: tuple[Path, ...]
    """The run folder; of an array one for each task."""
    job: Path
    """Holds the script, the configuration and the snapshot of the code."""
    logs: Path
    """Of the job itself."""
    working: Path
    """Where relative paths of the configuration begin."""
    mounts: tuple[Path, ...]
    """What a container must see."""


@dataclass(frozen=True, kw_only=True)
class SlurmJob:
    """What is asked of Slurm and of the script."""

    name: str
    nodes: int
    devices_per_node: int
    device: Device
    sbatch: tuple[tuple[str, str | None], ...]
    """Further options of sbatch, name without dashes and value, in the order given."""
    save_ahead: int
    """Seconds before the time limit at which ranks are asked to save."""
    max_restarts: int
    node_check: NodeCheck
    node_check_limit: int
    """Minutes, in which Slurm counts."""
    node_floor: float
    """Share of the devices' published figures."""
    below_floor: BelowFloor
    python: str
    """Python on the nodes, in the container if there is one."""
    bookkeeper: str
    """Python of the batch script itself, outside any container."""
    container: str | None
    container_runtime: Runtime
    environment: tuple[tuple[str, str], ...]
    is_last: bool
    """False: another job of a chain goes on where this one runs out of time."""
    array_limit: int
    """Tasks of an array that run at the same time; 0: all."""


def script(job: SlurmJob, place: Place, what: str) -> str:
    """The whole text; `what` says in a few words what is trained."""
    parts = [
        "#!/bin/bash",
        directives(job, place),
        f"# {what}: {job.nodes} nodes x {job.devices_per_node} {job.device}, one task a rank.\n"
        "# Written by contentv launch; docs/operations.md explains every file it names.",
        settings(job, place),
        SIGNALS,
        ATTEMPT,
        MEETING,
        STEPS.replace("@srun@", " ".join(srun(job, place))).replace("@python@", shlex.join(ranks_python(job))),
    ]
    if job.node_check != "off":
        parts.append(node_check(job))
    parts.append(TRAINING.replace("@again@", REQUEUE if job.is_last else NEXT_LINK))
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def directives(job: SlurmJob, place: Place) -> str:
    """The #SBATCH lines. Ours first: what the user passes on comes later, and sbatch takes the last."""
    is_array = len(place.runs) > 1
    options: list[tuple[str, str | None]] = [
        ("job-name", job.name),
        ("nodes", str(job.nodes)),
        ("ntasks-per-node", str(job.devices_per_node)),
        ("requeue", None),
        ("signal", f"B:USR1@{job.save_ahead}"),
        ("open-mode", "append"),
        ("chdir", str(place.working)),
        ("output", str(place.logs / ("job-%A_%a.log" if is_array else "job-%j.log"))),
    ]
    if is_array:
        options.append(("array", f"0-{len(place.runs) - 1}" + (f"%{job.array_limit}" if job.array_limit else "")))
    if option := ASKING[job.device].option:
        name, _, value = option.partition("=")
        options.append((name, value.replace("N", str(job.devices_per_node))))
    return "\n".join(directive(name, value) for name, value in [*options, *job.sbatch])


def directive(name: str, value: str | None) -> str:
    if value is None:
        return f"#SBATCH --{name}"
    # sbatch reads double quotes as a shell does.
    return f'#SBATCH --{name}="{value}"' if set(value) & set(" #;'") else f"#SBATCH --{name}={value}"


def settings(job: SlurmJob, place: Place) -> str:
    lines = [f"job={shlex.quote(str(place.job))}"]
    if len(place.runs) > 1:
        lines += ["runs=(", *(f"    {shlex.quote(str(run))}" for run in place.runs), ")"]
        lines += ["run=${runs[$SLURM_ARRAY_TASK_ID]}  # one task of the array is one point of the sweep"]
        lines += ['config="$job/config-$SLURM_ARRAY_TASK_ID.yaml"']
        lines += [
            "# The plain number of one of the tasks is that of the whole array: a requeue of it would end all others."
        ]
        lines += ["id=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"]
    else:
        lines += [f"run={shlex.quote(str(place.runs[0]))}", 'config="$job/config.yaml"', "id=$SLURM_JOB_ID"]
    bookkeeping = shlex.join([job.bookkeeper, "-m", "contentv.launchers.slurm_job"])
    lines += [
        f"bookkeeping=({bookkeeping})  # imports no torch: a tenth of a second",
        f"max_restarts={job.max_restarts}",
        "",
        "# The code as it was when the job was sent: a job that is requeued next week runs the same.",
        'export PYTHONPATH="$job/code${PYTHONPATH:+:$PYTHONPATH}"',
        f"export CONTENTV_DEVICE={job.device}",
    ]
    lines += [line for line in [ASKING[job.device].settings] if line]
    lines += ["# srun takes this over from sbatch no more (Slurm 22.05).",
              '[ -n "${SLURM_CPUS_PER_TASK:-}" ] && export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK']  # fmt: skip
    lines += [f"export {name}={shlex.quote(value)}" for name, value in job.environment]
    return "\n".join(lines)


def srun(job: SlurmJob, place: Place) -> list[str]:
    """How a step is started: the first rank that fails ends all others, and each rank has a log of its own."""
    # Whatever the site or the user's SBATCH_EXPORT makes of it: ranks need what the script exports.
    words = ["srun", "--export=ALL", "--kill-on-bad-exit=1", '--output="$logs/$name-%t.log"', "--open-mode=append"]
    if job.container and job.container_runtime == "pyxis":
        mounts = ",".join(f"{path}:{path}" for path in place.mounts)
        words += [f"--container-image={shlex.quote(job.container)}", f"--container-mounts={shlex.quote(mounts)}"]
        words += [f"--container-workdir={shlex.quote(str(place.working))}"]
        # Else the image's own values win.
        words += [f"--container-env={','.join([*SET, *(name for name, _ in job.environment)])}"]
    return words


def ranks_python(job: SlurmJob) -> list[str]:
    if job.container and job.container_runtime == "apptainer":
        # The mounts come from APPTAINER_BIND: one place for all steps.
        return ["apptainer", "exec", *ASKING[job.device].apptainer, job.container, job.python]
    return [job.python]


def node_check(job: SlurmJob) -> str:
    words = {"@then@": job.node_check, "@limit@": job.node_check_limit, "@ranks@": job.devices_per_node,
             "@floor@": job.node_floor, "@below@": job.below_floor}  # fmt: skip
    text = NODE_CHECK
    for word, value in words.items():
        text = text.replace(word, str(value))
    return text


def with_mounts(job: SlurmJob, mounts: Sequence[Path]) -> tuple[tuple[str, str], ...]:
    """The environment, with what apptainer is to mount."""
    if job.container is None or job.container_runtime != "apptainer":
        return job.environment
    return (*job.environment, ("APPTAINER_BIND", ",".join(map(str, mounts))))


SIGNALS = """
# --- Signals: USR1 comes from Slurm ahead of the time limit and from contentv stop, TERM with a preemption. Ranks save
# at the end of their step and leave with status 75. $asked is USR1 once that has come, whatever else did.
step= asked= interrupted=
ask() {
    interrupted=yes
    [ -n "$step" ] && kill -USR1 "$step"
}
trap 'asked=USR1; ask' USR1
trap 'asked=${asked:-TERM}; ask' TERM
"""

ATTEMPT = """
# --- Which attempt this is, or why there is none: the run is complete, was stopped, or fails again and again.
nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
attempt=$("${bookkeeping[@]}" begin "$run" "$config" --job "$id" --nodes $nodes \\
    --max-restarts $max_restarts) || exit
[ "$attempt" = complete ] && exit 0
logs="$run/logs/attempt-$attempt"
mkdir -p "$logs"
"""

MEETING = """
# --- Where the ranks meet: on rank 0's node. Slurm is asked which that is, since it need not be the first; by its
# address, since names of nodes need not resolve.
first=$(srun bash -c 'if [ "$SLURM_PROCID" = 0 ]; then echo "$SLURMD_NODENAME"; fi')
MASTER_ADDR=$([ -n "$first" ] && scontrol show node "$first" | sed -n 's/.*NodeAddr=\\([^ ]*\\).*/\\1/p')
if [ -z "$MASTER_ADDR" ]; then
    echo "error: Slurm does not say where rank 0's node is (${first:-no name}); contentv launch again goes on" >&2
    exit 1
fi
MASTER_PORT=$((10000 + SLURM_JOB_ID % 10000 * 2))
export MASTER_ADDR MASTER_PORT
"""

STEPS = """
# ranks NAME MODULE ARGUMENT...: one process a rank, to its end or to Slurm's $limit; its status in $status. In the
# background, because a shell that waits for a program in the foreground hears no signal.
limit=
ranks() {
    local name=$1
    shift
    status=75
    [ -n "$asked" ] && return
    @srun@ $limit @python@ -m "$@" 2>>"$logs/srun-$name.log" &
    step=$! interrupted=yes
    # It came while there was no step to pass it on to.
    [ -n "$asked" ] && kill -USR1 "$step"
    while [ -n "$interrupted" ]; do
        interrupted=
        wait "$step"
        status=$?
    done
    step=
    cat "$logs/srun-$name.log" >&2
}

# again: back into the queue, unless Slurm ends the job already: one that was cancelled would come back to life, and one
# that is preempted or has lost a node is requeued by Slurm itself.
again() {
    trap '' TERM USR1
    case $(squeue -h -j "$id" -o %T) in
    CANCELLED | COMPLETING | PREEMPTED | NODE_FAIL) return ;;
    "") ;;  # squeue failed: the job may have been cancelled
    *) scontrol requeue "$id" && return ;;
    esac
    echo "error: job $id could not be requeued; contentv launch again goes on from the last checkpoint" >&2
    return 1
}
"""

NODE_CHECK = """
# --- The nodes first: a slow or broken one would hold up all others for as long as the job runs. Slurm ends a check in
# which all hang at its limit.
limit=--time=@limit@ began=$SECONDS
ranks node_check contentv.launchers.node_check "$logs"
bad=$("${bookkeeping[@]}" judge "$run" --attempt "$attempt" --logs "$logs" --job "$id" --nodes $nodes \\
    --ranks-per-node @ranks@ --seconds $((SECONDS - began)) --limit @limit@ --floor @floor@ \\
    --below-floor @below@ --asked "$asked")
if [ $? = 3 ]; then
    next=$("${bookkeeping[@]}" end "$run" "$config" --attempt "$attempt" --status 1 --logs "$logs" \\
        --reason "$bad" --max-restarts $max_restarts)
    [ "$next" = again ] && again
    exit 1
elif [ -n "$bad" ]; then
    next=$("${bookkeeping[@]}" leave "$run" --attempt "$attempt" --bad-nodes "$bad" --then @then@ \\
        --max-restarts $max_restarts)
    excluded=$(squeue -h -j "$id" -o %x)  # by the user
    [ "$excluded" = "(null)" ] && excluded=
    # Only a job that waits can be told which nodes to leave out, so it goes back into the queue first.
    [ "$next" = again ] && again && scontrol update JobId="$id" ExcNodeList="$bad${excluded:+,$excluded}"
    exit 1
fi
limit=
"""

TRAINING = """
# --- Training, from the last checkpoint if there is one.
ranks rank contentv.launchers.train "$config"

# --- What that end means: complete, again or stop. The reason is in the job's log and in restarts.jsonl.
next=$("${bookkeeping[@]}" end "$run" "$config" --attempt "$attempt" --status "$status" --logs "$logs" \\
    --asked "$asked" --max-restarts $max_restarts)
case $next in
complete)
    exit 0
    ;;
again)
@again@
    ;;
esac
[ "$status" = 0 ] && status=1
exit "$status"
"""

REQUEUE = """    again"""

NEXT_LINK = """    # Out of time, the next job of the chain goes on; what failed or was preempted begins again in this
    # one, and the next waits until this one is over for good.
    [ "$asked" = USR1 ] || again || echo "the next job of the chain goes on instead" >&2"""
