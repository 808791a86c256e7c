"""python -m train: one network of either stream, from shards (or a folder of images) to a run folder."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from pipeline.errors import InputError, command_errors
from pipeline.paths import DatasetPaths, check_name, data_root
from train import recipe as recipes
from train.recipe import KEYS, TYPES, load_recipe, parse

DEFAULT_RECIPES = {"temporal": "temporal-stack10", "spatial": "spatial-scratch-dropout9"}
PRETRAINED_SPATIAL = "spatial-lastlayer-dropout5"


def recipe_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """One option per recipe key, None unless given."""
    for name, entry in reversed(KEYS.items()):
        if name == "stream":
            continue
        flag, text = name.replace("_", "-"), entry.metadata["help"]
        if TYPES[name] is bool:
            option = click.option(f"--{flag}/--no-{flag}", name, default=None, help=text)
        elif name == "also":
            option = click.option(
                "--also", multiple=True, metavar="NAME", help=f"{text}; may be given several times"
            )
        else:
            choices = entry.metadata["choices"]
            kind = TYPES[name]
            metavar = (
                "|".join(choices) if choices else {int: "N", float: "X", str: "TEXT"}.get(kind, "A,B,...")
            )
            option = click.option(f"--{flag}", name, default=None, metavar=metavar, help=text)
        command = option(command)
    return command


@click.command(context_settings={"max_content_width": 110, "help_option_names": ["-h", "--help"]})
@click.option(
    "--dataset", default=None, help="dataset to learn, as in `python -m pipeline datasets`  [default: demo]"
)
@click.option(
    "--images",
    type=click.Path(path_type=Path),
    help="learn a folder of images instead: DIR/train/<class>/*, DIR/val/<class>/*",
)
@click.option("--split", default=1, show_default=True, help="number of the split")
@click.option(
    "--stream",
    type=click.Choice(["spatial", "temporal"]),
    help="the network's input  [default: the recipe's, or temporal]",
)
@click.option(
    "--recipe", help="a shipped recipe or a TOML file (--list-recipes)  [default: by stream and dataset]"
)
@click.option(
    "--run",
    "--name",
    "run_name",
    help="name of the run's folder; under torchrun say --name, as it takes --run for its own  [default: STREAM-splitK]",
)
@click.option(
    "--data", type=click.Path(path_type=Path), help="data root  [default: $TWO_STREAM_DATA, or data]"
)
@click.option("--shards", help="shard set to read  [default: the only one, or tvl1]")
@click.option(
    "--init",
    type=click.Path(path_type=Path),
    help="weights to start from: a torchvision-style state dict, a checkpoint or a run folder",
)
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="override any key of the recipe")
@click.option("--allow-missing", is_flag=True, help="train on the videos whose shards are good")
@click.option(
    "--resume",
    type=click.Choice(["auto", "no"]),
    default="auto",
    show_default=True,
    help="go on from the run's newest checkpoint",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N")
@click.option(
    "--workers", type=click.IntRange(0), default=None, help="loader processes  [default: cores, at most 16]"
)
@click.option(
    "--threads", type=click.IntRange(1), default=None, help="CPU threads of the network  [default: cores]"
)
@click.option(
    "--micro-batch",
    type=click.IntRange(1),
    default=None,
    help="samples at a time; gradients add up to the batch  [default: all on a GPU, 32 on a CPU]",
)
@click.option(
    "--checkpoint-every",
    type=click.IntRange(1),
    default=None,
    help="iterations  [default: a tenth, at most 1000]",
)
@click.option(
    "--validate-every", type=click.IntRange(1), default=None, help="iterations  [default: a twentieth]"
)
@click.option(
    "--log-every",
    type=click.IntRange(1),
    default=10,
    show_default=True,
    help="iterations between two writes of the log",
)
@click.option(
    "--keep",
    type=click.IntRange(1),
    default=3,
    show_default=True,
    help="newest checkpoints to keep, beside the best",
)
@click.option("--compile", "compiled", is_flag=True, help="use torch.compile")
@click.option(
    "--tensorboard/--no-tensorboard",
    default=True,
    show_default=True,
    help="write events if tensorboard is installed",
)
@click.option("--list-recipes", is_flag=True, help="print the shipped recipes and end")
@recipe_options
@command_errors
def main(**options: Any) -> None:
    """Train a ConvNet of one stream; running the same command again goes on where it stopped.

    Several processes share the work under torchrun or srun. Exit status: 0 done, 1 an error that the message explains,
    75 stopped by SIGTERM or SIGUSR1 after saving (the same command goes on).
    """
    if options["list_recipes"]:
        list_recipes()
        return
    sys.exit(run(options))


def list_recipes() -> None:
    """Name and first comment line of every shipped recipe."""
    for name in recipes.names():
        first = (recipes.FOLDER / f"{name}.toml").read_text(encoding="utf-8").splitlines()[0]
        print(f"{name:32} {first.removeprefix('# ')}")


def overrides(options: dict[str, Any]) -> dict[str, Any]:
    """Recipe keys given as options or by --set; InputError for one given both ways with different values."""
    given: dict[str, Any] = {}
    for key in KEYS:
        value = options.get(key)
        if key == "stream" or value is None or value == ():
            continue
        given[key] = parse(key, value) if isinstance(value, str) else value
    for setting in options["settings"]:
        key, equals, text = setting.partition("=")
        if not equals:
            raise InputError(f"--set {setting}: expected KEY=VALUE")
        key = key.strip().replace("-", "_")
        value = parse(key, text.strip())
        if key in given and given[key] != value:
            raise InputError(f"{key} is given twice: {given[key]} and {value}")
        given[key] = value
    return given


def run(options: dict[str, Any]) -> int:
    """Resolve the options, find the data, train; the exit status."""
    import torch

    from train.batches import default_workers
    from train.distributed import join
    from train.trainer import Options, train
    from train.training_data import gather, gather_images

    images: Path | None = options["images"]
    dataset = options["dataset"] or ("images" if images else "demo")
    check_name(dataset, "dataset")
    given = overrides(options)
    name = options["recipe"] or default_recipe(dataset, options["stream"], options["init"], bool(images))
    recipe = load_recipe(name, given)
    stream = options["stream"] or (
        recipe.stream if recipe.stream != "either" else "spatial" if images else "temporal"
    )
    if images and stream != "spatial":
        raise InputError("--images holds no flow: it is for the spatial stream")
    spec = recipe.volume(stream)
    run_name = options["run_name"] or (f"{stream}-images" if images else f"{stream}-split{options['split']}")
    folder = DatasetPaths(data_root(options["data"]), dataset).run(run_name)
    if options["threads"]:
        torch.set_num_threads(options["threads"])

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    with join(options["device"]) as world:
        error, material = None, None
        try:
            if images:
                material = gather_images(images, dataset)
            else:
                material = gather(
                    dataset,
                    options["split"],
                    spec,
                    recipe,
                    options["data"],
                    options["shards"],
                    options["allow_missing"],
                )
        except InputError as found:
            error = str(found)
        world.agree(error)
        assert material is not None
        about = {
            "dataset": dataset,
            "images": str(images) if images else None,
            "split": None if images else options["split"],
            "stream": stream,
            "shards": ",".join(f"{key}={value}" for key, value in material.shards.items()) or None,
            "init": str(options["init"]) if options["init"] else None,
            "videos": hashlib.sha256("\n".join(item.name for item in material.train).encode()).hexdigest()[
                :16
            ],
        }
        if world.first:
            kind = "images" if images else "videos"
            say(
                f"{dataset}: {stream} stream, recipe {name}, {len(material.train)} {kind} to train on"
                + (f", {len(material.validation)} to validate on" if material.validation else "")
                + (f", {material.left_out} left out (missing or broken)" if material.left_out else "")
                + f", {world.size} process(es) on {world.device}; run folder {folder}"
            )
        workers = options["workers"]
        return train(
            recipe,
            spec,
            material,
            {key: value for key, value in about.items() if value is not None},
            Options(
                folder=folder,
                resume=options["resume"],
                workers=default_workers(world.place.processes_here) if workers is None else workers,
                micro_batch=options["micro_batch"] or 0,
                checkpoint_every=options["checkpoint_every"] or 0,
                validate_every=options["validate_every"] or 0,
                log_every=options["log_every"],
                keep=options["keep"],
                compiled=options["compiled"],
                tensorboard=options["tensorboard"],
            ),
            world,
            options["init"],
            say,
        )


def default_recipe(dataset: str, stream: str | None, init: Path | None, images: bool) -> str:
    """The recipe of a run that names none."""
    if images:
        return "imagenet"
    if dataset == "demo":
        return "demo"
    if stream == "spatial" and init is not None:
        return PRETRAINED_SPATIAL
    return DEFAULT_RECIPES[stream or "temporal"]


if __name__ == "__main__":
    main(prog_name="python -m train")
