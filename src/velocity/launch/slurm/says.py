"""What Slurm says of a job, of its partitions, and of a request that it would refuse. It knows no script."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping

from velocity.config import slurm as settings
from velocity.config.slurm import SlurmConfig
from velocity.errors import JobError, UserError
from velocity.launch.launcher import Submitted
from velocity.terminal import say

USABLE = ("idle", "alloc", "mix", "comp", "plnd")  # states of nodes
# What sbatch says of a request that it refuses, the field that it speaks of, and what to do.
REFUSALS = (
    (r"policy", "launch", "sacctmgr show associations, and show qos, tell how much you may ask for"),
    (r"invalid account", "launch.account", "sacctmgr show associations user=$USER lists yours"),
    (r"invalid qos", "launch.qos", "sacctmgr show associations user=$USER lists yours"),
    (r"invalid partition", "launch.partition", "sinfo lists them"),
    (r"time limit|--time", "launch.time", "sinfo shows each partition's limit"),
    (r"feature|constraint", "launch.constraint", "sinfo --format='%N %f' shows what nodes have"),
    (r"generic resource|gres|gpu", "launch.gpus_per_node", "sinfo --format='%N %G' shows what nodes have"),
    (r"--mem|memory", "launch.memory", "write it as 200G; sinfo --format='%N %m' shows what nodes have, in MB"),
    (r"node configuration", "launch", "sinfo --Node --long shows what nodes have"),
    (r"option|licen[sc]e|reservation|node name|--\w", "launch.options", "man sbatch has them"),
)  # fmt: skip


def check(launch: SlurmConfig, script: str) -> None:
    """Slurm would take the job, and could start it; UserError where it could not."""
    if shutil.which("sbatch") is None:
        fix = "run this on a login node of the cluster, where Slurm's commands are"
        raise UserError("there is no sbatch here", "launch.kind", fix)
    if "," not in (launch.partition or ""):
        _check_partition(launch, _partitions())
    tried = ask("sbatch", "--test-only", text=script)
    if not tried.returncode:
        return
    # what nodes that are down have counts for nothing; as soon as they are back, Slurm would start the job
    away = _away(launch.partition) if "node configuration" in tried.stderr else []
    if not away:
        raise refused(tried.stderr)
    named = ", ".join(away[:3]) + (" …" if len(away) > 3 else "")
    say(f"Slurm would not start it now, but may when what is down is back ({named}): {short(tried.stderr)}")


def ask(*command: str, text: str = "") -> subprocess.CompletedProcess[str]:
    """What a command of Slurm's says; JobError where there is none."""
    try:
        return subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise JobError(
            f"there is no {command[0]} here", "the path", "run this on a login node of the cluster"
        ) from None


def facts_of(submitted: Submitted) -> Mapping[str, str]:
    """What Slurm knows of the job; empty where it has forgotten it. JobError where it does not answer."""
    shown = ask("scontrol", "show", "job", submitted.id, "--oneliner")
    if shown.returncode and not is_gone(shown.stderr):
        raise JobError(f"Slurm does not answer: {short(shown.stderr)}", "scontrol show job", "try again later")
    facts = dict(re.findall(r"(\w+)=(\S*)", shown.stdout))
    return facts if facts.get("JobName") == submitted.name else {}  # the numbers begin anew some day


def is_gone(said: str) -> bool:
    """True where the job is over, or forgotten."""
    return "invalid job id" in said.lower() or "already completing or completed" in said.lower()


def _away(partition: str | None) -> list[str]:
    """Nodes that are down, or taken out of use."""
    where = [f"--partition={partition}"] if partition else []
    shown = ask("sinfo", "--noheader", "--Node", "--format=%N %t", *where)
    states = dict(line.split() for line in shown.stdout.splitlines())
    return [name for name, state in states.items() if state.rstrip("*~#!%$@^-+") not in USABLE]


def _partitions() -> Mapping[str, Mapping[str, str]]:
    """What Slurm says of each partition."""
    shown = ask("scontrol", "show", "partition", "--all", "--oneliner")
    if shown.returncode:
        raise UserError(f"Slurm does not answer: {short(shown.stderr)}", "launch.kind", "is this a login node?")
    every = [dict(re.findall(r"(\w+)=(\S*)", line)) for line in shown.stdout.splitlines()]
    return {one["PartitionName"]: one for one in every if "PartitionName" in one}


def _check_partition(launch: SlurmConfig, known: Mapping[str, Mapping[str, str]]) -> None:
    """The partition could start the job: sbatch may take one that it could not, and let it wait for ever."""
    default = next((name for name, facts in known.items() if facts.get("Default") == "YES"), None)
    name = launch.partition or default
    names = ", ".join(sorted(known)) or "none"
    if name is None:
        raise UserError("Slurm has no default partition", "launch.partition", f"one of: {names}")
    if name not in known:
        raise UserError(f"Slurm has no partition {name}", "launch.partition", f"one of: {names}")
    facts = known[name]
    if facts.get("State", "UP") != "UP":
        fix = f"another one of: {names}"
        raise UserError(f"the partition {name} is {facts['State']}, and starts nothing", "launch.partition", fix)
    if launch.qos is None and facts.get("QoS", "N/A") == "N/A":  # which may lift its limits
        _check_limits(launch, name, facts)


def _check_limits(launch: SlurmConfig, name: str, facts: Mapping[str, str]) -> None:
    nodes = [int(facts[key]) for key in ("MaxNodes", "TotalNodes") if facts.get(key, "").isdigit()]
    if nodes and launch.nodes > min(nodes):
        what = f"launch.nodes={launch.nodes}, but the partition {name} gives a job {min(nodes)}"
        raise UserError(what, "launch.nodes", f"{min(nodes)} or fewer, or another partition")
    longest, usual = (_limit(facts.get(key, "NONE")) for key in ("MaxTime", "DefaultTime"))
    asked = None if launch.time is None else settings.seconds(launch.time)
    if longest is not None and launch.time is not None and (asked is None or asked > longest):
        what = f"launch.time={launch.time}, but the partition {name} gives a job {facts['MaxTime']}"
        raise UserError(what, "launch.time", "less, and launch.requeue goes on with the rest; or another partition")
    given = usual if usual is not None else longest
    if launch.time is None and given is not None and given <= launch.warning_seconds:
        what = f"the partition {name} gives a job {given:.0f} s, if it asks for no time"
        raise UserError(what, "launch.time", f"more than launch.warning_seconds={launch.warning_seconds}")


def _limit(said: str) -> float | None:
    """Seconds; None where there is no limit."""
    return None if said == "NONE" else settings.seconds(said)


def refused(said: str) -> UserError:
    """Why sbatch refuses the job."""
    what = short(said)
    for pattern, where, fix in REFUSALS:
        if re.search(pattern, said, re.IGNORECASE):
            return UserError(f"Slurm refuses the job: {what}", where, fix)
    return UserError(
        f"Slurm refuses the job: {what}", "launch", "sbatch --test-only with --dry-run's script says the same"
    )


def short(said: str) -> str:
    """What a command of Slurm's says, in one line: its last one says most."""
    lines = [re.sub(r"^(\w+: )?(error: |fatal: )?(allocation failure: )?", "", line) for line in said.splitlines()]
    lines = [line for line in lines if line.strip() and not line.startswith("Try ")]
    return lines[-1] if lines else "no word"
