"""python -m slurm submit: mistakes are found before anything is queued; then the chain is submitted whole."""

from __future__ import annotations

import importlib
import os
import shlex
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import click
from click.core import ParameterSource

from pipeline.catalog import Dataset, choose_dataset, load_dataset
from pipeline.errors import InputError, command_errors
from pipeline.options import (
    CONTEXT,
    DatasetOptions,
    ShardSetOptions,
    from_options,
    option,
    options_of,
)
from pipeline.paths import DEFAULT_METHOD, DatasetPaths, check_name, data_root
from pipeline.runs import STREAMS, Fusion, RunPaths, Stream, chain_run_name, default_run_name, read_run
from pipeline.text import many, typed
from slurm import record, scheduler, state
from slurm.answers import command_line
from slurm.chain import STAGES, ChainRequest, Job, as_shell_script, pairs, plan
from slurm.queueing import submit_all
from slurm.record import Chain, Submitted

PROJECT = Path(__file__).resolve().parent.parent
USUAL_TASKS = 64
Stage = Literal["flow", "verify", "train", "score", "fuse"]

SEVERAL = {"evaluate": ("score", "fuse"), "all": STAGES}
"""Names that stand for several stages in --pass and --sbatch."""

COMMANDS = {
    "flow": ("extract_flow.__main__",),
    "verify": ("pipeline.__main__", "verify"),
    "train": ("train.__main__",),
    "score": ("evaluate.__main__", "score"),
    "fuse": ("evaluate.__main__",),
}
"""The command of each stage: the module of its `main`, and the subcommand if it is one."""


@dataclass(frozen=True, kw_only=True)
class SubmitOptions(DatasetOptions, ShardSetOptions):
    """Options of `python -m slurm submit`."""

    shards: str | None = option(
        None,
        "Shard set that flow writes and training reads.",
        metavar="NAME",
        shown_default="the method's name; without --method the only set there is, or tvl1",
    )
    method: str | None = option(
        None,
        "Flow method.",
        metavar="NAME",
        shown_default=f"the method of the shard set, or {DEFAULT_METHOD}",
    )
    tasks: int | None = option(
        None,
        "Flow tasks that share the videos.",
        minimum=1,
        shown_default=f"{USUAL_TASKS}, or one per video if fewer",
    )
    at_once: int | None = option(None, "Flow tasks that may run at a time.", minimum=1, shown_default="all")
    splits: tuple[str, ...] = option(
        (),
        "Splits to train on, as 1 or 1,2.",
        flag="split",
        metavar="NUMBERS",
        multiple=True,
        shown_default="all",
    )
    streams: tuple[Stream, ...] = option(
        (), "Stream to train; repeatable.", flag="stream", multiple=True, shown_default="both"
    )
    run: str | None = option(
        None, "Name the runs RUN-STREAM-splitK.", metavar="NAME", shown_default="STREAM-splitK"
    )
    fusions: tuple[Fusion, ...] = option(
        (), "How streams are fused; repeatable.", flag="fusion", multiple=True, shown_default="average"
    )
    allow_missing: bool = option(False, "Train and score without the videos that have no shard.")
    first: Stage = option(
        "flow", "First stage; options that concern other stages only have no effect.", flag="from"
    )
    last: Stage = option("fuse", "Last stage.", flag="until")
    arguments: tuple[str, ...] = option(
        (),
        "Argument for a stage's command, as --pass train=--recipe=NAME; STAGE may be evaluate (score, fuse) or all.",
        flag="pass",
        metavar="STAGE=ARGUMENT",
        multiple=True,
    )
    sbatch: tuple[str, ...] = option(
        (),
        "Option for sbatch, as --sbatch train=--gpus-per-node=4; STAGE as for --pass.",
        metavar="STAGE=OPTION",
        multiple=True,
    )
    dry_run: bool = option(False, "Only print the sbatch commands, as a bash script.")
    force: bool = option(False, "Submit although an earlier chain of this dataset has not ended.")


@click.command(context_settings=CONTEXT)
@options_of(SubmitOptions)
@click.pass_context
@command_errors
def command(context: click.Context, **values: Any) -> None:
    """Submit the chain flow -> verify -> train -> score -> fuse to SLURM.

    Work that is done is skipped, so the same command resumes after a failure. What a cluster needs (partition,
    account, GPUs, modules) is set once in slurm/site.env.
    """
    options = from_options(SubmitOptions, values)
    dataset = load_dataset(choose_dataset(options.dataset, options.data), options.data)
    if options.dataset is None:
        click.echo(f"dataset {dataset.name}", err=True)
    paths = DatasetPaths(data_root(options.data), dataset.name)
    chain = chain_request(dataset, paths, options)
    jobs = plan(chain)
    if options.dry_run:
        _check_stages(jobs, chain, dataset, paths, options)
        click.echo(as_shell_script(jobs, PROJECT, paths.logs))
        return
    _check_output(paths)
    scheduler.require_slurm()
    if not options.force:
        _check_nothing_runs(paths)
    for job in jobs:
        scheduler.check(job, PROJECT)
    _check_stages(jobs, chain, dataset, paths, options)
    submitted = submit_all(jobs, PROJECT)
    where = state.options_naming(dataset.name, options.data)
    record.save(Chain(time.time(), (*where, *_repeat(context)), tuple(submitted)), paths.logs)
    _report(submitted, paths, where)


def chain_request(dataset: Dataset, paths: DatasetPaths, options: SubmitOptions) -> ChainRequest:
    """The chain that the options ask for.

    Raises:
        InputError: an option does not fit the dataset.
    """
    stages = STAGES[STAGES.index(options.first) : STAGES.index(options.last) + 1]
    if not stages:
        raise InputError(f"--from {options.first} --until {options.last}: the order is {', '.join(STAGES)}")
    site = scheduler.site_options(Path(os.environ.get("TWO_STREAM_SITE", "slurm/site.env")), PROJECT)
    given = _by_stage(options.sbatch, "--sbatch")
    method, shard_set = method_and_shard_set(paths, options, stages)
    return ChainRequest(
        dataset=dataset.name,
        data=paths.data,
        logs=paths.logs,
        method=method,
        shard_set=shard_set,
        tasks=options.tasks or min(USUAL_TASKS, max(len(dataset.videos), 1)),
        at_once=options.at_once,
        splits=_splits(dataset, options.splits, stages),
        streams=list(dict.fromkeys(options.streams)) or STREAMS,
        run=check_name(options.run, "run") if options.run else None,
        fusions=list(dict.fromkeys(options.fusions)),
        allow_missing=options.allow_missing,
        stages=stages,
        arguments=_by_stage(options.arguments, "--pass"),
        options={stage: [*site[stage], *given[stage]] for stage in STAGES},
    )


def method_and_shard_set(
    paths: DatasetPaths, options: SubmitOptions, stages: Sequence[str]
) -> tuple[str, str]:
    """The flow method and the shard set of a chain: the named ones, else those of the shards that are there.

    Raises:
        InputError: the chain makes no shards, and there are none to read or several to choose from.
    """
    from pipeline.shard_sets import choose_shard_set, shard_sets  # loads HDF5, which --help needs not

    named = options.shards or options.method
    if "flow" in stages and (named or not shard_sets(paths)):
        shard_set = check_name(named or DEFAULT_METHOD, "shard set")
    elif {"verify", "train"}.isdisjoint(stages):
        shard_set = named or DEFAULT_METHOD  # scoring reads what its runs were trained on
    else:
        shard_set = choose_shard_set(paths, named)
    return options.method or _method_of(paths.shards(shard_set)) or DEFAULT_METHOD, shard_set


def _method_of(folder: Path) -> str | None:
    """The flow method of the shards in a folder; None if there are none that can be read."""
    from pipeline.request import request_of
    from pipeline.shard import open_shard
    from pipeline.shard_index import index_shards

    for address in index_shards(folder).values() if folder.is_dir() else ():
        try:
            with open_shard(address) as shard:
                return request_of(shard).method
        except InputError:
            continue
    return None


def _check_stages(
    jobs: Sequence[Job], chain: ChainRequest, dataset: Dataset, paths: DatasetPaths, options: SubmitOptions
) -> None:
    """Have every stage's command check its arguments; prints the recipes that training will take by default.

    Raises:
        InputError: a command rejects its arguments, or training would refuse a run that has begun.
    """
    for job in jobs:
        context = check_arguments(job)
        if job.stage == "train":
            check_begun_runs(context, chain, paths)
        _announce_recipe(context, dataset, options)


def check_begun_runs(train: click.Context, chain: ChainRequest, paths: DatasetPaths) -> None:
    """Compare what training is asked for with the runs of those names that have begun.

    Args:
        train: the trainer's command with its arguments.
        chain: whose runs.
        paths: of the dataset.

    Raises:
        InputError: one was trained by another recipe or from another shard set, so its task would fail.
    """
    from train.__main__ import recipe_differences

    for split, stream in pairs(chain.splits, chain.streams):
        name = chain_run_name(chain.run, stream, split) if chain.run else default_run_name(stream, split)
        run = RunPaths(paths.run(name))
        if not run.checkpoints():
            continue
        lines = recipe_differences(run, train.params)
        made_of = read_run(run.folder).shard_sets.get(paths.dataset)
        if made_of is not None and made_of != chain.shard_set:
            lines.append(f"shard set: {made_of} there, {chain.shard_set} asked for")
        if lines:
            raise InputError(
                f"{run.folder}: a run of that name was trained with another configuration:",
                *(f"  {line}" for line in lines),
                "repeat its options to resume, or name other runs with --run NAME; nothing was submitted",
            )


def _announce_recipe(train: click.Context, dataset: Dataset, options: SubmitOptions) -> None:
    """Print the recipes that the trainer will take, if these are its arguments and name none."""
    if train.info_name != "train" or train.params["recipe"]:
        return
    from train.__main__ import foreseen

    for stream in options.streams or STREAMS:
        recipe = foreseen(dataset.name, stream, train.params["init"], len(dataset.videos))
        click.echo(f"train: {stream} stream, {recipe}; runs that have begun keep theirs", err=True)


def check_arguments(job: Job) -> click.Context:
    """Have the stage's own command parse the arguments of the job, so that a mistake is reported before it is queued.

    Returns:
        The command's context, with what it understood.

    Raises:
        InputError: the command rejects them.
    """
    module, *names = COMMANDS[job.stage]
    command: click.Command = importlib.import_module(module).main
    try:
        for name in names:
            assert isinstance(command, click.Group)
            found = command.get_command(click.Context(command), name)
            assert found is not None
            command = found
        return command.make_context(job.stage, list(job.arguments))
    except click.UsageError as error:
        raise InputError(
            f"the command of stage '{job.stage}' does not take its arguments: {error.format_message()}"
        ) from error


def _report(submitted: Sequence[Submitted], paths: DatasetPaths, where: Sequence[str]) -> None:
    """Print the jobs, and how to follow and to cancel them."""
    ids = [each.id for each in submitted]
    for each in submitted:
        click.echo(f"{each.stage:<7} {each.job:>8}  {many(each.tasks, 'task') if each.tasks else '1 job'}")
    click.echo(f"watch:  {command_line('squeue', ids, '-j', ',')}")
    click.echo(f"state:  {typed('slurm')} status {shlex.join(where)}")
    click.echo(f"logs:   {paths.logs}")
    click.echo(f"cancel: {command_line('scancel', ids)}")


def _splits(dataset: Dataset, wanted: Sequence[str], stages: Sequence[str]) -> list[int]:
    """The splits to train on, each once, all of which the dataset has."""
    numbers = [number for text in wanted for number in text.split(",")]
    if wrong := [number for number in numbers if not number.isdecimal()]:
        raise InputError(f"--split {wrong[0]!r}: expected numbers, as 1 or 1,2,3")
    for number in numbers:
        dataset.split(int(number))
    found = list(dict.fromkeys(map(int, numbers))) or list(dataset.splits)
    if not found and not {"train", "score", "fuse"}.isdisjoint(stages):
        raise InputError(f"dataset {dataset.name} has no splits: import it with lists, or use --until verify")
    return found


def _by_stage(words: Sequence[str], flag: str) -> dict[str, list[str]]:
    """The values of `train=VALUE`, `all=VALUE` and the like by stage, in the order given."""
    given: dict[str, list[str]] = {stage: [] for stage in STAGES}
    for word in words:
        name, equals, value = word.partition("=")
        stages = SEVERAL.get(name, (name,))
        if not equals or not value or not set(stages) <= set(STAGES):
            names = ", ".join([*STAGES, *SEVERAL])
            raise InputError(f"{flag} {word!r}: expected STAGE=VALUE, where STAGE is one of {names}")
        for stage in stages:
            given[stage].append(value)
    return given


def _check_output(paths: DatasetPaths) -> None:
    """Create the folder of the logs, and check that files can be written there and beside the shards.

    Raises:
        InputError: they cannot.
    """
    if "\\" in str(paths.logs):
        raise InputError(
            f"{paths.logs}: SLURM cannot write logs below a folder with a backslash in its name; use another --data"
        )
    try:
        paths.logs.mkdir(parents=True, exist_ok=True)
        for folder in (paths.root, paths.logs):
            with tempfile.TemporaryFile(dir=folder):
                pass
    except OSError as error:
        raise InputError(
            f"{paths.root} cannot be written to ({error.strerror}): its jobs could save nothing"
        ) from error


def _check_nothing_runs(paths: DatasetPaths) -> None:
    chain = record.latest(paths.logs)
    alive = [job.id for job in chain.jobs if state.is_alive(job)] if chain else []
    if alive:
        raise InputError(
            f"jobs {', '.join(job.number for job in alive)} of the chain submitted last have not ended: see "
            f"`{typed('slurm')} status`, take them out of the queue with "
            f"`{command_line('scancel', alive)}`, or submit all the same with --force"
        )


def _repeat(context: click.Context) -> list[str]:
    """The options that were given, without the dataset's and those that are not to be repeated."""
    words = []
    for parameter in context.command.params:
        name = parameter.name or ""
        given = context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        if not given or name in ("dataset", "data", "first", "force", "dry_run"):
            continue
        value = context.params[name]
        if isinstance(value, bool):
            words.append(parameter.opts[0])
        else:
            words += [
                f"{parameter.opts[0]}={each}" for each in (value if isinstance(value, tuple) else [value])
            ]
    return words
