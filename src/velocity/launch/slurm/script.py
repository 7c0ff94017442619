"""A submission as a script for sbatch. It asks no Slurm, reads no file, and knows no secret.

The script runs on the first node. It starts a process a node, passes on what asks the job to stop, and leaves in
ended.json how the job ended: its exit status, and why.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

from velocity.config.slurm import SlurmConfig, as_slurm
from velocity.launch.launcher import Submission, shell

SCRIPT, LOG, ENDED = "job.sbatch", "log.txt", "ended.json"
# For nodes that still send files to a mirror when the first one has ended: twice what they are given for it.
WAIT_SECONDS = 3600
SAVES = ("checkpoints", "shards")  # of a run folder

BEGIN = """\
asked='' step=''

end() {  # with an exit status, and why
  printf '{"exit_status": %d, "why": "%s"}\\n' "$1" "$2" > "$folder/.ended.json"
  mv -f "$folder/.ended.json" "$folder/ended.json"
  exit "$1"
}
ask() {  # the nodes to save and stop; a SIGTERM would have srun kill them
  if [ "$asked" != person ]; then asked=$1; fi
  if [ -n "$step" ]; then kill -USR1 "$step" 2> /dev/null; fi
}
trap 'ask time' USR1    # Slurm's warning
trap 'ask person' TERM  # velocity cancel, scancel
rm -f "$folder"/ended*.json  # an earlier attempt's
touch "$folder/begun"
"""

# What is sourced may fail inside; what its line says at the end counts.
SETUP = """
# launch.setup: here, on the first node; its variables go to all nodes
setup_failed='a line of launch.setup failed\\n  where: launch.setup, on the first node\\n  fix:   velocity logs shows '
setup_failed+='what it said; behind a line that may fail, write || true'
trap 'if [ "${#BASH_SOURCE[@]}" -le 1 ]; then end 1 "$setup_failed"; fi' ERR
"""

# Nodes end together, by themselves: srun would kill those that still save. All processors of the job are for all ranks
# of a node, which are below one task of srun.
RUN = """
set -u
if [ -n "$asked" ]; then end 75 'stopped before the first step\\n  fix:   run the same command to go on'; fi
srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --export=ALL --cpu-bind=none \\
  --kill-on-bad-exit=0 --wait={wait_seconds} \\
  bash -c 'export VELOCITY_VERDICT="$0/ended-$SLURM_NODEID.json"; exec "$@"' "$folder" "${{command[@]}}" &
step=$!
if [ -n "$asked" ]; then kill -USR1 "$step"; fi
while kill -0 "$step" 2> /dev/null; do wait "$step"; done  # a signal ends the wait, not the step
wait "$step"
status=$?
step=''
"""

# A shared disk may show the other nodes' files only seconds later; the first node's own is there at once.
END = """
verdicts() {  # of the nodes; the one that counts first: a failure, then an interruption, then success
  grep -LE '"exit_status": *(0|75)[^0-9]' "$folder"/ended-*.json
  grep -lE '"exit_status": *75[^0-9]' "$folder"/ended-*.json
  ls "$folder"/ended-*.json
} 2> /dev/null
for _ in {1..20}; do
  verdict=$(verdicts | head -n 1)
  said=$(sed -n 's/.*"exit_status": *\\([0-9]*\\).*/\\1/p' "${verdict:-/dev/null}")
  if [ "$status" -eq 0 ] || [ "${said:-0}" -ne 0 ] || [ -n "$asked" ]; then break; fi
  sleep 1
done
unsaid=''
if [ -n "$asked" ] && [ -z "$said" ]; then
  said=75 unsaid='stopped before a node could say how far it was\\n  fix:   run the same command to go on'
elif [ -z "$said" ] || { [ "$said" -eq 0 ] && [ "$status" -ne 0 ]; }; then
  said=1 unsaid="a node ended without a word (srun ended with $status)\\\\n  where: Slurm job $SLURM_JOB_ID"
  unsaid+='\\n  fix:   velocity logs shows what was said last; has every node the same Python and disk?'
fi
"""

# Loading and tokenising may take all of one attempt. A third one that saves nothing would not be the last.
REQUEUE = """
if [ "$said" = 75 ] && [ -z "$asked" ] && scontrol show job "$SLURM_JOB_ID" | grep -q 'PreemptTime=[0-9]'; then
  asked='time'  # for a more urgent job; Slurm has told the nodes alone
fi
if [ "$said" = 75 ] && [ "$asked" = time ]; then
  saved=$(find "${saves[@]}" -newer "$folder/begun" -print -quit 2> /dev/null)
  if [ -z "$saved" ] && [ -e "$folder/unsaved" ]; then
    unsaid='two attempts, one after the other, came to nothing that could be saved\\n  where: launch.time'
    unsaid+='\\n  fix:   a longer launch.time, or a shorter launch.warning_seconds; then the same command goes on'
  else
    if [ -z "$saved" ]; then touch "$folder/unsaved"; else rm -f "$folder/unsaved"; fi
    echo 'the time is up; the job goes back into the queue, and on from there' >&2
    if scontrol requeue "$SLURM_JOB_ID"; then exit 75; fi
  fi
fi
"""

CONCLUDE = """
if [ -n "$unsaid" ]; then end "$said" "$unsaid"; fi
mv -f "$verdict" "$folder/ended.json"
exit "$said"
"""


def script(submission: Submission) -> str:
    """All that sbatch is given."""
    launch: SlurmConfig = submission.launch
    options = "".join(f"#SBATCH {shlex.quote(option)}\n" for option in _options(launch, submission))
    command = shell(submission.command(launch.python or sys.executable))
    head = f"#!/bin/bash\n# submitted by velocity run --on slurm, which is also what goes on with it\n{options}\n"
    begin = f"folder={shlex.quote(str(submission.folder))}\ncommand=({command})\n{BEGIN}"
    runs = [Path(job.output).expanduser() for job in submission.jobs]
    saves = shell([f"{run}/{name}" for run in runs for name in SAVES])
    setup = f"{SETUP}{launch.setup.rstrip()}\ntrap - ERR\n" if launch.setup else ""
    requeue = f"\nsaves=({saves})  # where a run puts what it goes on from{REQUEUE}" if launch.requeue else ""
    end = END + requeue + CONCLUDE
    return head + begin + setup + RUN.format(wait_seconds=WAIT_SECONDS) + end


def _options(launch: SlurmConfig, submission: Submission) -> Iterator[str]:
    """Of sbatch, each as one word; the user's own come last."""
    yield f"--job-name={submission.name}"
    yield f"--nodes={launch.nodes}"
    yield "--ntasks-per-node=1"
    asked = {
        "partition": launch.partition, "account": launch.account, "qos": launch.qos,
        "time": launch.time and as_slurm(launch.time),
        "gpus-per-node": launch.gpus_per_node, "cpus-per-task": launch.cpus_per_node, "mem": launch.memory,
        "constraint": launch.constraint,
    }  # fmt: skip
    for name, value in asked.items():
        if value is not None:
            yield f"--{name}={value}"
    log = f"{submission.folder}/{LOG}".replace("%", "%%")  # what follows a % stands for something
    yield f"--output={log}"
    yield "--open-mode=append"  # a later attempt's lines follow
    yield f"--signal=B:USR1@{launch.warning_seconds}"  # to the script alone, which passes it on
    yield "--requeue" if launch.requeue else "--no-requeue"
    yield "--export=ALL"
    yield from launch.options
