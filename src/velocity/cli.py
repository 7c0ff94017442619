"""The command line: one function a verb. Whatever is heavy is imported inside the verb."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

from velocity.errors import InterruptedRun, UserError, shown
from velocity.garbage import collect_seldom
from velocity.process import hear_stops
from velocity.terminal import keep_secrets, progress_line, say

if TYPE_CHECKING:
    from velocity.config.job import LoadedJob
    from velocity.launch.launcher import Submitted

app = typer.Typer(
    help="Turn a stock language model into a domain expert: one YAML job file, one command, on DeepSpeed.",
    no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False,
)  # fmt: skip

image_app = typer.Typer(help="The container that SageMaker and Kubernetes run.", no_args_is_help=True)
app.add_typer(image_app, name="image")

Jobs = Annotated[list[str], typer.Argument(metavar="JOB.yaml... [key.path=value...]", help="job files, then overrides")]
Processes = Annotated[int | None, typer.Option("--processes", help="processes on this machine; one a GPU if left out")]
On = Annotated[str | None, typer.Option("--on", metavar="TARGET", help="local, ssh, slurm, sagemaker or kubernetes")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="of velocity jobs, or the beginning of one")]
DETACHED = 130  # as a shell says of a command that Ctrl-C ended
Accelerator = Annotated[Literal["cuda", "cpu"], typer.Option("--accelerator", help="cpu: for machines without GPUs")]
Tool = Annotated[str | None, typer.Option("--tool", help="docker, podman or buildah; the first that is installed")]
Options = Annotated[list[str] | None, typer.Option("--option", help="for the tool itself; may be given again")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]


@app.command()
def run(
    jobs: Jobs,
    processes: Processes = None,
    on: On = None,
    detach: Annotated[
        bool, typer.Option("--detach", help="return once it is submitted; velocity logs follows")
    ] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="move an older run in the output folder aside")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="print the resolved job and the command, or all that would be submitted")
    ] = False,
) -> None:
    """Run job files in order, here or on a target. A finished one is skipped, a stopped one goes on."""
    started = time.time()
    hear_stops(_stop)
    try:
        # first: a wrong job file is refused before anything heavy is imported
        loaded_jobs = _load(jobs, processes, on)
        if detach or loaded_jobs[0].job.launch.kind != "local":
            overrides = [text for text in jobs if "=" in text]
            overrides += [] if processes is None else [f"launch.processes={processes}"]
            _send(loaded_jobs, overrides, dry_run=dry_run, fresh=fresh, detach=detach)
        elif dry_run:
            _print_dry(loaded_jobs)
        else:
            from velocity.start.run import run_all

            run_all(loaded_jobs, fresh=fresh, started=started)
    except KeyboardInterrupt as stop:  # while inputs are prepared; a run that has begun ends by itself, and saves
        raise shown(stop) from None


def _send(loaded_jobs: list[LoadedJob[Any]], overrides: list[str], *, dry_run: bool, fresh: bool, detach: bool) -> None:
    """The jobs were submitted and, unless we detach, are over; the job's exit status becomes ours."""
    from velocity.launch import command

    submission = command.make_submission(loaded_jobs, overrides, fresh=fresh)
    if dry_run:
        for name, text in command.rendered(submission).items():
            print(f"# ---- {name}\n{text.rstrip()}")
        return
    if fresh:
        command.move_aside(loaded_jobs)
    sent = command.submit(submission)
    if detach:
        say(command.detached(sent))
    else:
        _follow(sent)


def _follow(sent: Submitted) -> None:
    from velocity.launch import command

    try:
        command.conclude(sent, command.follow(sent, say))
    except KeyboardInterrupt:
        say(command.detached(sent))
        raise typer.Exit(DETACHED) from None


@app.command("jobs")
def _jobs(as_json: AsJson = False) -> None:
    """List what was submitted from this folder, and where it is."""
    from velocity.launch import command

    rows = command.listed()
    if as_json:
        print(json.dumps(rows))
    else:
        command.print_listed(rows)


@app.command()
def logs(
    name: Name,
    no_follow: Annotated[bool, typer.Option("--no-follow", help="print what there is, and return")] = False,
) -> None:
    """Print the lines of a submitted job until it is over. Its exit status becomes ours."""
    from velocity.launch import command
    from velocity.launch.submitted import find

    submitted = find(name)
    if no_follow:
        command.print_lines(submitted)
    else:
        hear_stops(_stop)
        _follow(submitted)


@app.command()
def cancel(name: Name) -> None:
    """Ask a submitted job to stop. It saves, and the same `velocity run` goes on."""
    from velocity.launch import command

    say(f"asked {command.cancel(name).name} to stop")


@app.command()
def fetch(name: Name) -> None:
    """Bring the runs of a submitted job here, from their mirror: metrics, model, completions."""
    from velocity.launch import command

    command.fetch(name)


@image_app.command("build")
def _build(
    accelerator: Accelerator = "cuda",
    tag: Annotated[str | None, typer.Option("--tag", help="its name here")] = None,
    tool: Tool = None,
    pip_config: Annotated[str | None, typer.Option("--pip-config", help="a pip.conf, for the build alone")] = None,
    option: Options = None,
) -> None:
    """Build the image from a checkout."""
    from velocity.launch.container import build_image

    print(build_image(accelerator, tag=tag, tool=tool, pip_config=pip_config, options=option or ()))


@image_app.command("push")
def _push(
    to: Annotated[str, typer.Option("--to", help="REGISTRY/NAME; in Amazon's the repository is made if missing")],
    tag: Annotated[str | None, typer.Option("--tag", help="its name here; what was built last, if left out")] = None,
    tool: Tool = None,
    option: Options = None,
) -> None:
    """Push the image; jobs without a launch.image use it, by its digest."""
    from velocity.launch.container import push_image

    print(push_image(to, tag=tag, tool=tool, options=option or ()))


@app.command(hidden=True)
def node(target: Annotated[str, typer.Argument(metavar="TARGET")], jobs: Jobs) -> None:
    """Be one node of a submitted job: what every target starts, once a machine."""
    started = time.time()
    hear_stops(_stop)
    from velocity.start.nodes import run_here

    run_here(target, lambda: _load(jobs, None, target), started=started)


def _stop(_: int) -> NoReturn:
    """The first signal ends what we do in good order, a further one at once."""
    hear_stops(_stop_at_once)
    raise KeyboardInterrupt


def _leave(_: int) -> NoReturn:
    """Whoever waits for something else than a run just ends."""
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
    from velocity.config.job import placed
    from velocity.start.families import family_of
    from velocity.start.resolve import resolve_ahead, with_earlier

    for resolved, model_folder in map(resolve_ahead, with_earlier(loaded_jobs)):
        of = family_of(resolved.job).check
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
    nodes: Annotated[int | None, typer.Option("--nodes", min=1, help="machines of that kind")] = None,
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
        cluster = command.cluster_of(detect(local.visible_gpus()), loaded.job.launch, gpus, instance, nodes)
        described = command.answer(loaded, cluster, price, as_json=as_json)
        if described is not None:
            print(json.dumps(described))


@app.command()
def show(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN... [FILE.html]", help="run folders; with --html a file")],
    as_json: AsJson = False,
    html: Annotated[bool, typer.Option("--html", help="as a page: FILE.html, or report.html in the run")] = False,
) -> None:
    """Say what a run did, and how evaluations differ; with --html as a page, of several runs side by side."""
    if html:
        from velocity.evaluation.compare import comparisons
        from velocity.report.write import write_named

        print(write_named(runs, comparisons))
        return
    for folder in runs:
        _show(folder, as_json=as_json)
    if len(runs) > 1:
        from velocity.evaluation.compare import comparisons
        from velocity.evaluation.show import print_compared

        for compared in comparisons(runs):
            print(json.dumps(compared)) if as_json else print_compared(compared)


def _show(folder: Path, *, as_json: bool) -> None:
    from importlib import import_module

    from velocity.runs.opened import open_run

    # not by the families: those import torch, and a run is shown without it
    part = {"generate": "inference", "evaluate": "evaluation"}.get(open_run(folder)[1].task, "training")
    of = import_module(f"velocity.{part}.show")
    summary = of.summarise(folder)
    if as_json:
        print(json.dumps(summary))
    else:
        of.print_summary(summary)


@app.command()
def watch(
    run: Annotated[str, typer.Argument(metavar="RUN", help="a run folder, or the address of its mirror")],
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: any that is free")] = 8787,
    host: Annotated[str, typer.Option("--host", help="another than this machine alone: with a token")] = "127.0.0.1",
) -> None:
    """Serve the page of a run while it goes on, for a browser on this machine."""
    hear_stops(_leave)
    from velocity.report import serve

    serve.watch(run, host, port)


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


def _load(arguments: list[str], processes: int | None, target: str | None = None) -> list[LoadedJob[Any]]:
    """Every job file, aimed at the target if one is named, checked before any of them starts."""
    from velocity.config.load import load_job

    files = [argument for argument in arguments if "=" not in argument]
    overrides = [argument for argument in arguments if "=" in argument]
    if not files:
        raise UserError("no job file is named", "command line", "e.g. velocity run job.yaml seed=1")
    if processes is not None:
        overrides.append(f"launch.processes={processes}")
    return [load_job(Path(file), overrides, target) for file in files]


def _print_dry(loaded_jobs: list[LoadedJob[Any]]) -> None:
    from velocity.config.resolved import render
    from velocity.launch import local
    from velocity.runs.folder import RunFolder
    from velocity.start.families import family_of
    from velocity.start.resolve import resolve_ahead, with_earlier

    for resolved, _ in map(resolve_ahead, with_earlier(loaded_jobs)):
        folder = RunFolder(resolved.job.output)
        print(render(resolved), end="")
        module, count = family_of(resolved.job).module, int(resolved.job.launch.processes)
        print("#", " ".join(local.render(module, folder.path, folder.failures, count)))


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line; an error is printed without a traceback and becomes the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments
    keep_secrets()
    collect_seldom()
    try:
        app([argument for argument in arguments if argument != "--debug"], standalone_mode=True)
    except Exception as error:
        told = shown(error)
        if debug:
            if told.trace:
                print(told.trace, file=sys.stderr)
            raise
        for problem in told.problems:
            say(f"error: {problem}")
        sys.exit(told.exit_status)
    sys.exit(0)
