"""Recipes: everything that decides what a training run learns, as one flat TOML file.

Those shipped are in train/recipes/; a run saves its own, resolved, so that it can be repeated from that file alone.
Nothing here loads torch.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_type_hints

from pipeline.errors import InputError, reading
from pipeline.options import option
from pipeline.runs import STREAMS, RunRecord
from train.models import MODELS
from train.volume_spec import COLOUR_MEAN, COLOUR_STD, STACKINGS, VOLUME_DIRECTIONS, VolumeSpec

FOLDER = Path(__file__).parent / "recipes"
MOST_ITERATIONS = 10**9
MOST = {"batch": 1 << 20, "segments": 1000, "iterations": MOST_ITERATIONS}
LARGEST_SEED = 2**63 - 1
"""What both torch and NumPy take."""
SMALLEST_SCALE = 0.05


def _key(default: Any, help: str, choices: tuple[str, ...] = (), multiple: bool = False) -> Any:
    commas = isinstance(default, tuple) and not multiple
    sentence = f"{help[0].upper()}{help[1:]}."
    made = option(default, sentence, choices=choices or None, multiple=multiple, commas=commas)
    return field(default=default, metadata={**made.metadata, "help": help, "choices": choices})


@dataclass(frozen=True)
class Recipe:
    """A resolved recipe; each attribute is a key of the TOML file and an option of `python -m train`.

    `stream` alone is not among these options: the command's own --stream names the stream to train.
    """

    stream: str = field(
        default="either",
        metadata={"help": "stream that the recipe is for", "choices": ("either", *STREAMS)},
    )
    model: str = _key("cnn_m_2048", "network", MODELS)
    width: float = _key(1.0, "filters per layer as a fraction of the published number (ResNets)")
    dropout: float = _key(0.9, "dropout ratio before the last layers")
    pretrained: bool = _key(False, "the recipe starts from pre-trained weights: --init must be given")
    trained: str = _key("all", "layers that are trained", ("all", "last-block", "last"))
    partial_bn: bool = _key(False, "freeze every batch normalisation but the first (TSN)")
    sync_bn: bool = _key(False, "compute batch statistics over all processes")
    # The input volume.
    crop: int = _key(224, "side of the network's input in pixels")
    short_side: int = _key(256, "smaller side of the video as the network sees it, in pixels; 0: as stored")
    length: int = _key(10, "L, flow fields per volume")
    stacking: str = _key("stack", "how flow fields are stacked", STACKINGS)
    direction: str = _key("forward", "direction of the flow; both is bi-directional", VOLUME_DIRECTIONS)
    mean_subtraction: bool = _key(True, "subtract each flow field's mean vector")
    flow_scale: float = _key(1.0, "network input per pixel of flow")
    colour_mean: tuple[float, ...] = _key(COLOUR_MEAN, "RGB mean that is subtracted, in 0..255")
    colour_std: tuple[float, ...] = _key(COLOUR_STD, "RGB standard deviation that is divided by, in 0..255")
    # Sampling and augmentation.
    batch: int = _key(256, "batch size: videos per iteration, over all processes")
    segments: int = _key(1, "snippets per video whose logits are averaged (TSN)")
    cut: str = _key(
        "random", "where crops are taken: anywhere, or at corners and centre", ("random", "corner")
    )
    scales: tuple[float, ...] = _key((), "scale jitter: crop sides as fractions of the smaller side")
    flip: bool = _key(True, "flip half of the samples horizontally; x flow is negated")
    lighting: float = _key(0.1, "standard deviation of the PCA colour noise (Krizhevsky 2012)")
    # The schedule.
    iterations: int = _key(80_000, "training iterations; overriding it scales steps and warmup")
    learning_rate: float = _key(0.01, "initial learning rate")
    schedule: str = _key("step", "learning rate schedule", ("step", "cosine", "constant"))
    steps: tuple[int, ...] = _key(
        (), "iterations at which a step schedule multiplies the learning rate by factor"
    )
    factor: float = _key(0.1, "what a step multiplies the learning rate by")
    warmup: int = _key(0, "iterations of linear warm-up of the learning rate")
    momentum: float = _key(0.9, "momentum of SGD")
    nesterov: bool = _key(False, "use Nesterov momentum")
    weight_decay: float = _key(5e-4, "weight decay of SGD")
    clip: float = _key(0.0, "gradient clipping: largest norm of the gradient; 0: none")
    precision: str = _key(
        "auto", "precision of the network; auto is bf16 on a GPU and fp32 on a CPU", ("auto", "fp32", "bf16")
    )
    # What it learns from.
    also: tuple[str, ...] = _key((), "a further dataset with its own head; may be repeated", multiple=True)
    add_classes: str = _key("", "dataset whose classes join the head (train/added_classes/)")
    validation: str = _key(
        "0", "fraction of the training groups held out for validation, or `test` for the test list"
    )
    seed: int = _key(0, "seed of every random choice")

    def __post_init__(self) -> None:
        for entry in dataclasses.fields(self):
            choices, value = entry.metadata["choices"], getattr(self, entry.name)
            if choices and value not in choices:
                raise InputError(f"{entry.name}: expected one of {', '.join(choices)}, found {value!r}")
        for name, most in MOST.items():
            if not 1 <= getattr(self, name) <= most:
                raise InputError(
                    f"{name}: expected at least 1 and at most {most:,}, found {getattr(self, name)}"
                )
        for name in ("learning_rate", "factor"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise InputError(f"{name}: expected a positive number, found {getattr(self, name)}")
        for name in ("lighting", "weight_decay", "clip"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"{name}: expected 0 or more, found {getattr(self, name)}")
        for name, most in (("warmup", MOST_ITERATIONS), ("seed", LARGEST_SEED)):
            if not 0 <= getattr(self, name) <= most:
                raise InputError(f"{name}: expected 0 or more, at most {most}, found {getattr(self, name)}")
        for name in ("dropout", "momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name}: expected 0 or more and less than 1, found {getattr(self, name)}")
        if any(not SMALLEST_SCALE <= scale <= 1 for scale in self.scales):
            raise InputError(
                f"scales: expected shares above 0 (from {SMALLEST_SCALE}) and up to 1, found {list(self.scales)}"
            )
        if list(self.steps) != sorted(self.steps) or any(
            not 0 <= step <= MOST_ITERATIONS for step in self.steps
        ):
            raise InputError(
                f"steps: expected rising iterations from 0 to {MOST_ITERATIONS:,}, found {list(self.steps)}"
            )
        for name in ("colour_mean", "colour_std"):
            if len(getattr(self, name)) != 3:
                raise InputError(f"{name}: expected three numbers, found {list(getattr(self, name))}")
        if self.nesterov and not self.momentum:
            raise InputError("nesterov: it needs a momentum above 0, found 0")
        if self.sync_bn and self.partial_bn:
            raise InputError("sync_bn and partial_bn exclude each other: frozen statistics need no exchange")
        self.held_out  # noqa: B018  # fails for a value that is neither a share nor `test`

    @property
    def held_out(self) -> float | Literal["test"]:
        """`validation` as a share of the training list, or "test"."""
        if self.validation == "test":
            return "test"
        try:
            share = float(self.validation)
        except ValueError:
            share = math.nan
        if not 0 <= share < 1:
            raise InputError(
                f"validation: expected a share from 0 to below 1, or test; found {self.validation!r}"
            )
        return share

    def volume(self, stream: str) -> VolumeSpec:
        """What the network's input is made of.

        Raises:
            InputError: the recipe is for the other stream, or its volume is impossible.
        """
        if self.stream not in ("either", stream):
            raise InputError(f"this recipe is for the {self.stream} stream, not the {stream} one")
        names = {entry.name for entry in dataclasses.fields(VolumeSpec)} - {"stream"}
        return VolumeSpec.from_dict({"stream": stream, **{name: getattr(self, name) for name in names}})

    def learning_rate_at(self, iteration: int) -> float:
        """Learning rate of an iteration; iterations are counted from 0."""
        if iteration < self.warmup:
            return self.learning_rate * (iteration + 1) / (self.warmup + 1)
        if self.schedule == "step":
            return self.learning_rate * self.factor ** sum(iteration >= step for step in self.steps)
        if self.schedule == "cosine":
            done = (iteration - self.warmup) / max(self.iterations - self.warmup, 1)
            return self.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
        return self.learning_rate

    def as_dict(self) -> dict[str, Any]:
        """Plain values, lists for tuples."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in dataclasses.asdict(self).items()
        }


KEYS = {entry.name: entry for entry in dataclasses.fields(Recipe)}
TYPES: dict[str, Any] = get_type_hints(Recipe)


def names() -> list[str]:
    """Names of the shipped recipes."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load_recipe(name: str, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """A shipped recipe by name, or a TOML file, with some keys overridden.

    Overriding `iterations` scales `steps` and `warmup` in proportion, unless they are overridden themselves.

    Raises:
        InputError: unknown recipe or key (the message suggests the nearest), or a value of the wrong type.
    """
    path = Path(name) if name.endswith(".toml") else FOLDER / f"{name}.toml"
    if not path.is_file():
        raise InputError(
            f"no recipe {name!r}{nearest(name, names())}; there are: {', '.join(names())}, or give a .toml file"
        )
    try:
        with reading(path):
            values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a TOML file: {error}") from error
    values = {key: value for key, value in values.items() if not isinstance(value, dict)}
    overrides = overrides or {}
    try:
        recipe = Recipe(**{key: coerce(key, value) for key, value in values.items()})
        given = {key: coerce(key, value) for key, value in overrides.items()}
        return dataclasses.replace(recipe, **{**scaled(recipe, overrides), **given})
    except InputError as error:
        raise InputError(f"recipe {name}: {error}") from error


def scaled(recipe: Recipe, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Steps and warm-up for another number of iterations, where they are not overridden themselves."""
    if "iterations" not in overrides:
        return {}
    ratio = coerce("iterations", overrides["iterations"]) / recipe.iterations
    return {
        "steps": tuple(round(step * ratio) for step in recipe.steps),
        "warmup": round(recipe.warmup * ratio),
    }


def coerce(key: str, value: Any) -> Any:
    """A value converted to the type of its key.

    Raises:
        InputError: unknown key, or a value of the wrong type.
    """
    if key not in KEYS:
        raise InputError(f"unknown key {key!r}{nearest(key, list(KEYS))}; keys are: {', '.join(KEYS)}")
    kind = TYPES[key]
    if kind in (str, bool, int) and type(value) is kind:
        return value
    if kind is float and type(value) in (int, float):
        return float(value)
    if kind is str and type(value) in (int, float) and key == "validation":
        return str(value)
    if kind not in (str, bool, int, float) and isinstance(value, list | tuple):
        member = kind.__args__[0]
        if all(type(item) is member or (member is float and type(item) is int) for item in value):
            return tuple(member(item) for item in value)
    raise InputError(f"{key}: expected {described(kind)}, found {value!r}")


def described(kind: Any) -> str:
    words = {str: "text", bool: "true or false", int: "a whole number", float: "a number"}
    return words.get(kind) or f"a list, each {words[kind.__args__[0]]}"


def parse(key: str, text: str) -> Any:
    """A value from the command line: TOML, else plain text; lists may be written `a,b`."""
    kind = TYPES.get(key)
    if kind is str:
        return text
    if kind is not None and kind not in (str, bool, int, float) and not text.startswith("["):
        parts = [part.strip() for part in text.split(",") if part.strip()]
        text = json.dumps(parts) if kind.__args__[0] is str else f"[{', '.join(parts)}]"
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def nearest(word: str, known: list[str]) -> str:
    """(did you mean ...?), if a known name is similar."""
    close = difflib.get_close_matches(word.replace("-", "_") if "_" in "".join(known) else word, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def to_toml(recipe: Mapping[str, Any], run: RunRecord) -> str:
    """A run's recipe.toml: the resolved recipe, and the run's record in a table that `load_recipe` skips.

    Args:
        recipe: its keys and plain values (`Recipe.as_dict`).
        run: what is recorded beside them.
    """
    lines = [f"{key} = {json.dumps(value)}" for key, value in recipe.items()]
    return "\n".join(lines) + "\n\n" + run.as_toml()
