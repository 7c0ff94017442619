"""The command line: one function a verb. Whatever is heavy is imported inside the verb."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from velocity.errors import InterruptedRun, JobError, UserError, VelocityError, from_system

if TYPE_CHECKING:
    from typing import TypeAlias

    from velocity.config.job import Job, LoadedJob
    from velocity.training.run_folder import RunFolder

    Resolved: TypeAlias = tuple[LoadedJob, Path, dict[str, Any]]  # the job, its model's folder, this machine

app = typer.Typer(
    help="Turn a stock language model into a domain expert: one YAML job file, one command, on DeepSpeed.",
    no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False,
)  # fmt: skip

Jobs = Annotated[list[str], typer.Argument(metavar="JOB.yaml... [key.path=value...]", help="job files, then overrides")]
Processes = Annotated[int | None, typer.Option("--processes", help="processes on this machine; one a GPU if left out")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]


@app.command()
def run(
    jobs: Jobs,
    processes: Processes = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="move an older run in the output folder aside")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="print the resolved job and the command, start nothing")
    ] = False,
) -> None:
    """Train: run job files in order. A finished one is skipped, a stopped one goes on."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: a KeyboardInterrupt
    loaded_jobs = _load(jobs, processes)
    if dry_run:
        for resolved, _, _ in map(_resolve_ahead, _with_earlier(loaded_jobs)):
            _print_dry(resolved)
        return
    try:
        if len(loaded_jobs) > 1:
            _check_ahead(loaded_jobs, fresh=fresh)
        for loaded in loaded_jobs:
            _run_one(loaded, fresh=fresh)
    except KeyboardInterrupt:  # while inputs are prepared; a run that has begun ends by itself, and saves
        raise InterruptedRun("stopped before the first step", fix="run the same command to go on") from None


@app.command()
def check(jobs: Jobs, processes: Processes = None, as_json: AsJson = False) -> None:
    """Say everything that can be known without loading weights: settings, data, masks."""
    loaded_jobs = _load(jobs, processes)  # first: a wrong job file is refused before torch is imported
    from velocity.config.job import placed
    from velocity.training.check import check_job, print_check

    for resolved, model_folder, _ in map(_resolve_ahead, _with_earlier(loaded_jobs)):
        with placed(resolved.origins):
            found = check_job(resolved, model_folder, _report())
        if as_json:
            print(json.dumps(found.describe()))
        else:
            print_check(found)


@app.command()
def show(folder: Annotated[Path, typer.Argument(metavar="RUN", help="a run folder")], as_json: AsJson = False) -> None:
    """Say what a run did."""
    from velocity.training.show import print_summary, summarise

    summary = summarise(folder)
    if as_json:
        print(json.dumps(summary))
    else:
        print_summary(summary)


@app.command()
def schema() -> None:
    """Print the JSON Schema of a job file, for editors."""
    from velocity.config.job import Job

    print(json.dumps(Job.model_json_schema(), indent=1))


def _load(arguments: list[str], processes: int | None) -> list[LoadedJob]:
    """Every job file, checked before any of them starts."""
    from velocity.config.job import load_job

    files = [argument for argument in arguments if "=" not in argument]
    overrides = [argument for argument in arguments if "=" in argument]
    if not files:
        raise UserError("no job file is named", "command line", "e.g. velocity run job.yaml seed=1")
    if processes is not None:
        overrides.append(f"launch.processes={processes}")
    return [load_job(Path(file), overrides) for file in files]


def _with_earlier(loaded_jobs: list[LoadedJob]) -> Iterator[tuple[LoadedJob, list[Job]]]:
    """Each job with those that come before it in the same call."""
    for number, loaded in enumerate(loaded_jobs):
        yield loaded, [earlier.job for earlier in loaded_jobs[:number]]


def _resolve_ahead(of: tuple[LoadedJob, list[Job]]) -> Resolved:
    """The same as `_resolve` before the earlier jobs have run, and without the weights of a hub model."""
    from velocity.config.job import placed
    from velocity.training.chain import model_ahead

    loaded, earlier = of
    with placed(loaded.origins):
        job, folder = model_ahead(loaded.job, earlier, weights=False)
    return _resolve(replace(loaded, job=job), folder)


def _resolve(loaded: LoadedJob, model_folder: Path | None = None) -> Resolved:
    """The job without any `auto`, its model's folder, and this machine."""
    from velocity.config.job import placed
    from velocity.launch.local import visible_gpus
    from velocity.models.locate import locate
    from velocity.planner.hardware import detect
    from velocity.planner.plan import resolve

    hardware = detect(visible_gpus())
    with placed(loaded.origins):
        folder = model_folder or locate(loaded.job.model)
        return resolve(loaded, hardware, folder), folder, hardware.describe()


def _check_ahead(loaded_jobs: list[LoadedJob], *, fresh: bool) -> None:
    """Nothing, or UserError for what would end a later job: better now than after the hours of the first one."""
    from velocity.config.job import placed
    from velocity.training.setup import check_startable, prepare_inputs

    for loaded in loaded_jobs:
        with placed(loaded.origins):
            check_startable(loaded, fresh=fresh)
    for resolved, model_folder, _ in map(_resolve_ahead, _with_earlier(loaded_jobs)):
        with placed(resolved.origins):
            prepare_inputs(resolved.job, model_folder, _report())


def _print_dry(resolved: LoadedJob) -> None:
    from velocity.config.resolved import render
    from velocity.launch import local
    from velocity.training.run_folder import RunFolder

    folder = RunFolder(resolved.job.output)
    print(render(resolved), end="")
    print("#", " ".join(local.render(folder.path, folder.failures, int(resolved.job.launch.processes))))


def _run_one(loaded: LoadedJob, *, fresh: bool) -> None:
    from velocity.config.job import placed
    from velocity.launch import local
    from velocity.training.run_folder import RunFolder
    from velocity.training.setup import check_startable, claim, is_complete, prepare_inputs

    resolved, model_folder, hardware = _resolve(loaded)
    with RunFolder(resolved.job.output).owned():
        with placed(resolved.origins):
            check_startable(resolved, fresh=fresh)
            inputs = prepare_inputs(resolved.job, model_folder, _report())
        if is_complete(resolved, inputs) and not fresh:
            _say(f"{resolved.job.output} is complete: the same job with the same inputs; nothing to do")
            return
        folder = claim(resolved, inputs, hardware, fresh=fresh)
        count = int(resolved.job.launch.processes)
        _say(f"{loaded.path}: {resolved.job.task} on {count} process(es), ZeRO {resolved.job.strategy.zero}, "
             f"{resolved.job.strategy.precision} → {folder.path}")  # fmt: skip
        added = local.environment(count, hardware["cores"], gpus=bool(hardware["gpus"]))
        _conclude(folder, local.run(local.render(folder.path, folder.failures, count), added))


def _conclude(folder: RunFolder, exit_status: int) -> None:
    """Nothing where the run is complete; else the error that says why not."""
    from velocity.distributed import failure

    status = folder.status()
    if exit_status == 0 and status["state"] == "complete":
        _say(f"done: {folder.model}")
        return
    if status["state"] == "interrupted":
        raise InterruptedRun(status["why"])
    if exit_status == InterruptedRun.exit_status:
        why = "stopped before it could save"
        folder.set_status("interrupted", why=why)
        raise InterruptedRun(why, str(folder.path), "run the same command to go on from the last checkpoint")
    cause = failure.cause(folder.failures)
    with contextlib.suppress(OSError):  # the disk may be full, which is what we are about to say
        folder.set_status("failed", cause=cause and cause["what"])
    if cause is None:
        raise JobError(
            f"the job ended with status {exit_status}, and no rank could say why", str(folder.path), "was memory short?"
        )
    if cause["trace"] and DEBUG:
        print(cause["trace"], file=sys.stderr)
    error = JobError(cause["what"], "" if "where:" in cause["what"] else f"{folder.failures}")
    error.exit_status = cause["exit_status"]
    raise error


CLEAR = "\r\033[K"  # what a changing line of a terminal is overwritten with
LINE_SECONDS = 10.0


def _say(text: str) -> None:
    print(f"{CLEAR if sys.stderr.isatty() else ''}{text}", file=sys.stderr, flush=True)


def _report() -> Callable[[str], None]:
    """Prints a changing line on a terminal, and a line now and then into a log."""
    if sys.stderr.isatty():
        return lambda text: print(f"{CLEAR}{text}", end="", file=sys.stderr, flush=True)
    said = time.monotonic()

    def report(text: str) -> None:
        nonlocal said
        if time.monotonic() - said >= LINE_SECONDS:
            said = time.monotonic()
            _say(text)

    return report


DEBUG = False


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line; an error is printed without a traceback and becomes the exit status."""
    global DEBUG
    arguments = sys.argv[1:] if arguments is None else arguments
    DEBUG = "--debug" in arguments
    try:
        app([argument for argument in arguments if argument != "--debug"], standalone_mode=True)
    except Exception as error:
        if DEBUG:
            raise
        shown = _shown(error)
        for problem in shown.problems:
            _say(f"error: {problem}")
        sys.exit(shown.exit_status)
    sys.exit(0)


def _shown(error: Exception) -> VelocityError:
    """What the user is told of an error that ends the command."""
    if isinstance(error, VelocityError):
        return error
    if isinstance(error, OSError):
        return from_system(error)
    what = f"{type(error).__name__}: {error}"
    return JobError(what, "a defect of Velocity", "--debug shows the traceback; please report it")
