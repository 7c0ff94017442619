"""The command line: one function a verb. Whatever is heavy is imported inside the verb."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from velocity.errors import InterruptedRun, JobError, UserError, VelocityError, from_system
from velocity.process import hear_stops
from velocity.terminal import keep_secrets, progress_line, say

if TYPE_CHECKING:
    from velocity.config.job import LoadedJob

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
    """Run job files in order. A finished one is skipped, a stopped one goes on."""
    started = time.time()
    hear_stops(_stop)
    try:
        loaded_jobs = _load(jobs, processes)  # first: a wrong job file is refused before anything heavy is imported
        if dry_run:
            _print_dry(loaded_jobs)
        else:
            _run(loaded_jobs, fresh=fresh, started=started)
    except KeyboardInterrupt:  # while inputs are prepared; a run that has begun ends by itself, and saves
        raise InterruptedRun("stopped before the first step", fix="run the same command to go on") from None


def _run(loaded_jobs: list[LoadedJob[Any]], *, fresh: bool, started: float | None) -> None:
    """All of them are done; KeyboardInterrupt where we were asked to stop, and one is left."""
    from velocity import start

    if len(loaded_jobs) > 1:
        start.check_ahead(loaded_jobs, fresh=fresh)
    for number, loaded in enumerate(loaded_jobs, 1):
        asked = start.run_one(loaded, fresh=fresh, started=started)
        if asked and number < len(loaded_jobs):
            raise KeyboardInterrupt
        started = None  # the next one's clock begins with it


def _stop(_: int) -> NoReturn:
    """The first signal ends what we do in good order, a further one at once."""
    hear_stops(_stop_at_once)
    raise KeyboardInterrupt


def _stop_at_once(_: int) -> NoReturn:
    try:
        say("error: stopped at once, before the first step\n  fix:   run the same command to go on")
    finally:
        os._exit(InterruptedRun.exit_status)


@app.command()
def check(jobs: Jobs, processes: Processes = None, as_json: AsJson = False) -> None:
    """Say everything that can be known without loading weights: settings, data, masks."""
    loaded_jobs = _load(jobs, processes)  # first: a wrong job file is refused before torch is imported
    from velocity import start
    from velocity.config.job import placed
    from velocity.inference import check as of_prompts
    from velocity.training import check as of_data

    for resolved, model_folder in map(start.resolve_ahead, start.with_earlier(loaded_jobs)):
        of: Any = of_prompts if resolved.job.task == "generate" else of_data
        with placed(resolved.origins):
            found = of.check_job(resolved, model_folder, progress_line())
        if as_json:
            print(json.dumps(found.describe()))
        else:
            of.print_check(found)


@app.command()
def plan(  # noqa: PLR0913, PLR0917 - its options
    jobs: Annotated[list[str] | None, typer.Argument(metavar="[JOB.yaml...]", help="job files, then overrides")] = None,
    processes: Processes = None,
    gpus: Annotated[str | None, typer.Option("--gpus", help="for these GPUs: 8xH100-80, or 2x8xH200-141")] = None,
    instance: Annotated[str | None, typer.Option("--instance", help="for this SageMaker type")] = None,
    nodes: Annotated[int, typer.Option("--nodes", min=1, help="machines of that kind")] = 1,
    price: Annotated[float | None, typer.Option("--price", min=0, help="dollars an hour, a machine")] = None,
    calibrate: Annotated[Path | None, typer.Option("--calibrate", metavar="RUN", help="learn from this run")] = None,
    as_json: AsJson = False,
) -> None:
    """Predict memory, speed and time of a job, strategy by strategy; start nothing."""
    from velocity.launch import local
    from velocity.planner import command, learn
    from velocity.planner.hardware import detect

    if calibrate is not None:
        learned = learn.learn_from(calibrate)
        print(json.dumps(learned)) if as_json else learn.print_learned(learned)
    if calibrate is not None and not jobs:
        return
    for loaded in _load(jobs or [], processes):
        cluster = command.cluster_of(detect(local.visible_gpus()), gpus, instance, nodes)
        described = command.answer(loaded, cluster, price, as_json=as_json)
        if described is not None:
            print(json.dumps(described))


@app.command()
def show(folder: Annotated[Path, typer.Argument(metavar="RUN", help="a run folder")], as_json: AsJson = False) -> None:
    """Say what a run did."""
    from velocity.inference import show as of_rows
    from velocity.runs.opened import open_run
    from velocity.training import show as of_steps

    of: Any = of_rows if open_run(folder)[1].task == "generate" else of_steps
    summary = of.summarise(folder)
    if as_json:
        print(json.dumps(summary))
    else:
        of.print_summary(summary)


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="a run folder")],
    target: Annotated[Path, typer.Argument(metavar="DIR", help="a new folder")],
) -> None:
    """Write a run's model as a plain Hugging Face folder, its adapter merged."""
    from velocity.training.export import export_model

    export_model(folder, target)
    say(f"done: {target}")


@app.command("schema")
def _schema() -> None:
    """Print the JSON Schema of a job file, for editors."""
    from velocity.config.load import schema

    print(json.dumps(schema(), indent=1))


def _load(arguments: list[str], processes: int | None) -> list[LoadedJob[Any]]:
    """Every job file, checked before any of them starts."""
    from velocity.config.load import load_job

    files = [argument for argument in arguments if "=" not in argument]
    overrides = [argument for argument in arguments if "=" in argument]
    if not files:
        raise UserError("no job file is named", "command line", "e.g. velocity run job.yaml seed=1")
    if processes is not None:
        overrides.append(f"launch.processes={processes}")
    return [load_job(Path(file), overrides) for file in files]


def _print_dry(loaded_jobs: list[LoadedJob[Any]]) -> None:
    from velocity import start
    from velocity.config.resolved import render
    from velocity.launch import local
    from velocity.runs.folder import RunFolder

    for resolved, _ in map(start.resolve_ahead, start.with_earlier(loaded_jobs)):
        folder = RunFolder(resolved.job.output)
        print(render(resolved), end="")
        module, count = start.family_of(resolved.job).module, int(resolved.job.launch.processes)
        print("#", " ".join(local.render(module, folder.path, folder.failures, count)))


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line; an error is printed without a traceback and becomes the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments
    keep_secrets()
    try:
        app([argument for argument in arguments if argument != "--debug"], standalone_mode=True)
    except Exception as error:
        shown = _shown(error)
        if debug:
            if shown.trace:
                print(shown.trace, file=sys.stderr)
            raise
        for problem in shown.problems:
            say(f"error: {problem}")
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
