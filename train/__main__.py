"""python -m train: train one network of either stream, from shards or a folder of images, into a run folder."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline import start
from pipeline.catalog import choose_dataset, load_dataset
from pipeline.errors import InputError, command_errors
from pipeline.options import (
    CONTEXT,
    LazyCommand,
    LazyGroup,
    from_options,
    given_options,
    given_values,
    options_of,
)
from pipeline.ownership import owning_folder
from pipeline.paths import NAME, DatasetPaths, check_name, data_root
from pipeline.runs import RunPaths, RunRecord, Stream, default_run_name, fold_run_name, read_run
from pipeline.text import many
from train import recipe as recipes
from train.default_recipe import SMALL_PRETRAINED, default_recipe, foreseen, network_of
from train.options import TrainOptions
from train.recipe import Recipe, load_recipe, parse
from train.volume_spec import VolumeSpec

if TYPE_CHECKING:
    from train.distributed import World
    from train.training_data import TrainingData

__all__ = ["foreseen", "main"]

COMMANDS = {
    "convert": LazyCommand(
        "train.convert", "command", "Weights of another project as a state dict for --init."
    ),
    "export": LazyCommand("train.deploy", "command", "A run's network as ONNX or TorchScript."),
}


@click.group(cls=LazyGroup, lazy=COMMANDS, invoke_without_command=True, context_settings=CONTEXT)
@options_of(TrainOptions)
@options_of(Recipe, given_only=True)
@click.pass_context
@command_errors
def main(context: click.Context, **values: Any) -> None:
    """Train a ConvNet of one stream; running the same command again resumes where it stopped.

    The options after --list-recipes are keys of the recipe. Under torchrun or srun, several processes train together.
    Exit status: 0 done, 1 an error that the message explains, 75 stopped by SIGTERM or SIGUSR1 after saving a
    checkpoint (the same command resumes).
    """
    if context.invoked_subcommand is not None:
        if given := given_options(context):
            raise click.UsageError(f"{given[0]} is for training, not for {context.invoked_subcommand!r}")
        return
    options = from_options(TrainOptions, values)
    if options.list_recipes:
        list_recipes()
        return
    sys.exit(run(options, overrides(given_values(Recipe, values), options.settings)))


def list_recipes() -> None:
    """Print the name and first comment line of every shipped recipe."""
    for name in recipes.names():
        first = (recipes.FOLDER / f"{name}.toml").read_text(encoding="utf-8").splitlines()[0]
        print(f"{name:32} {first.removeprefix('# ')}")


def overrides(given: dict[str, Any], settings: tuple[str, ...]) -> dict[str, Any]:
    """Recipe keys given as options or as KEY=VALUE; InputError for one given both ways with different values."""
    values = dict(given)
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise InputError(f"--set {setting}: expected KEY=VALUE")
        key = key.strip().replace("-", "_")
        value = parse(key, text.strip())
        if key in given and given[key] != value:
            raise InputError(f"{key} is given twice: {given[key]} and {value}")
        values[key] = value
    return values


def run(options: TrainOptions, overriding: dict[str, Any]) -> int:
    """Resolve the options, find the data, train; the exit status."""
    dataset = options.dataset or ("images" if options.images else choose_dataset(None, options.data))
    check_name(dataset, "dataset")
    recipe, name, options = chosen_recipe(options, dataset, overriding)
    stream = chosen_stream(options, recipe)
    spec = recipe.volume(stream)
    folder = run_folder(options, dataset, stream)

    import torch

    from train.distributed import join
    from train.trainer import train

    if options.threads:
        torch.set_num_threads(options.threads)

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    with join(options.device) as world, contextlib.ExitStack() as owned:
        if world.first and not (options.dataset or options.images):
            say(f"Dataset: {dataset} (in {data_root(options.data)})")
        data: TrainingData | None = None
        with world.agreeing():
            if world.first:
                owned.enter_context(owning_folder(folder))
                data = find_data(options, dataset, recipe, spec)
        data = world.share(data)
        if world.first:
            say(summary(dataset, stream, name, data, world, folder))
            if not RunPaths(folder).checkpoints() and (hint := suggestion(options, dataset, stream)):
                say(hint)
        return train(
            recipe,
            spec,
            data,
            record_of(options, dataset, stream, data),
            folder,
            options.loop,
            world,
            options.init,
            say,
        )


def recipe_differences(begun: RunPaths, values: Mapping[str, Any]) -> list[str]:
    """One line for each key of a begun run's recipe that differs from what the command's options ask for.

    Args:
        begun: a run that has checkpoints; where no recipe is named, its own counts.
        values: the command's options by name, as click gives them.

    Raises:
        InputError: no such recipe or key.
    """
    overriding = overrides(given_values(Recipe, values), values["settings"])
    there = load_recipe(str(begun.recipe)).as_dict()
    asked = load_recipe(values["recipe"] or str(begun.recipe), overriding).as_dict()
    return [f"{key}: {there[key]} there, {asked[key]} asked for" for key in there if there[key] != asked[key]]


def chosen_recipe(
    options: TrainOptions, dataset: str, overriding: dict[str, Any]
) -> tuple[Recipe, str, TrainOptions]:
    """The recipe that is named, else the run's own if it has begun, else the default for what it learns from.

    Returns:
        The recipe; its name and, in brackets, why it was taken; the options, with the stream of a run that has begun.
    """
    if options.recipe:
        return load_recipe(options.recipe, overriding), options.recipe, options
    begun = RunPaths(
        run_folder(options, dataset, options.stream or ("spatial" if options.images else "temporal"))
    )
    if begun.checkpoints() and begun.recipe.is_file():
        stream: Stream = "spatial" if read_run(begun.folder).stream == "spatial" else "temporal"
        options = dataclasses.replace(options, stream=options.stream or stream)
        return load_recipe(str(begun.recipe), overriding), "of the run so far", options
    clips = 0 if options.images else len(load_dataset(dataset, options.data).videos)
    chosen = default_recipe(
        dataset,
        options.stream,
        options.init,
        clips=clips,
        gpu=trains_on_gpu(options.device),
        images=options.images is not None,
    )
    if (
        chosen.name in SMALL_PRETRAINED.values()
        and options.init not in (None, "imagenet")
        and "model" not in overriding
    ):
        overriding = {**network_of(str(options.init)), **overriding}
    name = f"{chosen.name} ({chosen.reason})" if chosen.reason else chosen.name
    return load_recipe(chosen.name, overriding), name, options


def trains_on_gpu(device: str) -> bool:
    """Whether --device means a GPU on this machine."""
    if device != "auto":
        return device.startswith("cuda")
    import torch

    return torch.cuda.is_available()


def suggestion(options: TrainOptions, dataset: str, stream: Stream) -> str | None:
    """A hint for a spatial network that would start from random weights by a recipe nobody chose."""
    if stream != "spatial" or options.init or options.recipe or options.images or dataset == "demo":
        return None
    return (
        "hint: from scratch the spatial stream learns little from few videos; --init imagenet starts it from published "
        "weights, --init FILE from those of a file (docs/how-to/own-data.md)"
    )


def chosen_stream(options: TrainOptions, recipe: Recipe) -> Stream:
    """The stream to train: the one asked for, else the recipe's, else temporal (spatial for images).

    Raises:
        InputError: the temporal stream on images.
    """
    stream: Stream | None = options.stream
    if stream is None and recipe.stream == "either":
        stream = "spatial" if options.images else "temporal"
    elif stream is None:
        stream = "spatial" if recipe.stream == "spatial" else "temporal"
    if options.images and stream != "spatial":
        raise InputError("--images has no flow: it is for the spatial stream")
    return stream


def run_folder(options: TrainOptions, dataset: str, stream: Stream) -> Path:
    """The folder of the run: DATA/<dataset>/runs/<name>, or a run folder named by its path.

    Raises:
        InputError: neither a valid name nor the folder of a run.
    """
    named = options.run or default_run_name(stream, None if options.images else options.split)
    if options.run is None and options.fold is not None:
        named = fold_run_name(named, options.fold, options.folds)
    if not NAME.fullmatch(named) and RunPaths(Path(named)).recipe.is_file():
        return Path(named)
    return DatasetPaths(data_root(options.data), dataset).run(named)


def find_data(options: TrainOptions, dataset: str, recipe: Recipe, spec: VolumeSpec) -> TrainingData:
    """The images or shards to train on; see `train.training_data`."""
    from train.training_data import gather, gather_images

    if options.images:
        return gather_images(options.images, dataset)
    fold = None if options.fold is None else (options.fold, options.folds)
    return gather(
        dataset, options.split, spec, recipe, options.data, options.shards, options.allow_missing, fold
    )


def record_of(options: TrainOptions, dataset: str, stream: Stream, data: TrainingData) -> RunRecord:
    """What the run records about itself beside its recipe."""
    listed = "\n".join(item.name for item in data.train)
    return RunRecord(
        dataset=dataset,
        stream=stream,
        split=None if options.images else options.split,
        shard_sets=data.shard_sets,
        images=str(options.images) if options.images else None,
        init=options.init,
        videos=hashlib.sha256(listed.encode()).hexdigest()[:16],
        fold=options.fold,
        folds=None if options.fold is None else options.folds,
    )


def summary(dataset: str, stream: Stream, recipe: str, data: TrainingData, world: World, folder: Path) -> str:
    """The line printed before training."""
    sets = ", ".join(dict.fromkeys(data.shard_sets.values()))
    return (
        f"{dataset}: {stream} stream, recipe {recipe}, "
        + (f"shard set {sets}, " if sets else "")
        + f"{many(len(data.train), 'video' if sets else 'image')} to train on"
        + (f", {len(data.validation)} to validate on" if data.validation else "")
        + (f", {data.left_out} left out (missing or broken)" if data.left_out else "")
        + f", {many(world.size, 'process')} on {world.device}; run folder {folder}"
    )


if __name__ == "__main__":
    start.run(main, "python -m train")
