"""Options of commands: declared once, as fields of the dataclass that uses them.

    @dataclass(frozen=True, kw_only=True)
    class PackOptions(DatasetOptions, ShardSetOptions):
        size: int = option(1024, "Maximum number of megabytes per pack.", minimum=1)

    @click.command(context_settings=CONTEXT)
    @options_of(PackOptions)
    @command_errors
    def command(**values: Any) -> None:
        pack(from_options(PackOptions, values))

A field's type gives the option's: int, float, str, Path, a Literal, a tuple (an option that may be repeated), or bool
(a flag; `--x/--no-x` where it may be turned off). A field whose type is such a dataclass contributes its options.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import math
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import click

from pipeline.text import typed

REQUIRED: Any = MISSING
"""The default of an option that must be given."""

CONTEXT: dict[str, Any] = {"help_option_names": ["-h", "--help"], "max_content_width": 110}
"""Click's context settings of every command."""

Command = TypeVar("Command", bound=Callable[..., Any])
Options = TypeVar("Options")
_KEY = "pipeline.options"


@dataclass(frozen=True)
class Spec:
    """How a field is shown and checked on the command line; see `option`."""

    help: str
    flag: str | None = None
    off: str | None = None
    short: str | None = None
    choices: Sequence[str] | None = None
    metavar: str | None = None
    multiple: bool = False
    commas: bool = False
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    kind: click.ParamType | None = None
    shown_default: str | None = None
    hidden: bool = False
    replaces: str | None = None
    positional: bool = False


def option(
    default: Any,
    help: str,
    *,
    flag: str | None = None,
    off: str | None = None,
    choices: Sequence[str] | None = None,
    metavar: str | None = None,
    multiple: bool = False,
    commas: bool = False,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    kind: click.ParamType | None = None,
    shown_default: str | None = None,
    hidden: bool = False,
    short: str | None = None,
    replaces: str | None = None,
) -> Any:
    """A dataclass field that is an option of a command.

    Args:
        default: its value where the option is not given; `REQUIRED` if it must be.
        help: its line in --help.
        flag: its name with dashes; the field's name with dashes for underscores unless given.
        off: the name that turns a flag off, with dashes; "no-" and its name unless given.
        choices: the values that it takes; a Literal's own unless given.
        metavar: what stands for its value in --help.
        multiple: may be given several times; the field is a tuple.
        commas: one value with commas in it; the field is a tuple.
        minimum, maximum: the smallest and largest number that it takes.
        above: a number that it must exceed.
        kind: how its text is read, where its type is not enough.
        shown_default: what --help shows for the default, where None stands for something.
        hidden: not in --help.
        short: another name for it, such as "--name".
        replaces: an earlier name, such as "--set": wrong usage, with a message that names this option.
    """
    spec = Spec(
        help, flag, off, short, choices, metavar, multiple, commas, minimum, maximum, above, kind, shown_default,
        hidden, replaces,
    )  # fmt: skip
    return dataclasses.field(default=default, metadata={_KEY: spec})


def argument(
    default: Any, *, metavar: str, multiple: bool = False, choices: Sequence[str] | None = None
) -> Any:
    """A dataclass field that is a positional argument; `REQUIRED` where it must be given (once, if `multiple`)."""
    spec = Spec("", metavar=metavar, multiple=multiple, choices=choices, positional=True)
    return dataclasses.field(default=default, metadata={_KEY: spec})


class CommaSeparated(click.ParamType):
    """Values with commas between them, as in 1,2,3."""

    name = "A,B,..."

    def __init__(self, item: type) -> None:
        self.item = item

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[Any, ...]:
        """The values."""
        if isinstance(value, tuple):
            return value
        try:
            return tuple(self.item(part.strip()) for part in str(value).split(","))
        except ValueError:
            self.fail(
                f"expected {self.item.__name__} values with commas between them, found {value!r}", param, ctx
            )


class Number(click.FloatRange):
    """A number within bounds, where there are any: neither infinite nor `nan`, which no comparison would refuse."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number."""
        number = super().convert(value, param, ctx)
        if number is not None and not math.isfinite(number):
            self.fail(f"expected a finite number, found {value}", param, ctx)
        return number

    def _describe_range(self) -> str:
        return super()._describe_range() if (self.min, self.max) != (None, None) else ""


def options_of(kind: type, given_only: bool = False) -> Callable[[Command], Command]:
    """A decorator that gives a command an option for each field of a dataclass.

    Args:
        kind: the dataclass; fields that were not made by `option` or `argument` are not options.
        given_only: every option's default is None (or empty), whatever the field's: for values that override others.
    """

    def decorate(command: Command) -> Command:
        fields = list(fields_of(kind))
        flags = {f"--{_flag(field)}" for field, _ in fields}
        for field, annotation in reversed(fields):
            command = _decorator(field, annotation, given_only)(command)
            if (earlier := spec_of(field).replaces) and earlier not in flags:
                command = _refused(earlier, f"--{_flag(field)}")(command)
        return command

    return decorate


def _flag(field: dataclasses.Field[Any]) -> str:
    return spec_of(field).flag or field.name.rstrip("_").replace("_", "-")


def _refused(earlier: str, now: str) -> Callable[[Command], Command]:
    """A hidden option whose use is an error that names its successor."""

    def refuse(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
        if value is not None:
            raise click.UsageError(f"no such option {earlier}: write {now} {value}", ctx)

    return click.option(earlier, hidden=True, expose_value=False, callback=refuse)


def from_options(kind: type[Options], values: Mapping[str, Any]) -> Options:
    """The dataclass filled with what click gave; `values` may hold those of other dataclasses as well."""
    given: dict[str, Any] = {}
    hints = _hints(typing.cast(Any, kind))
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]  # a dataclass by contract
        if _KEY not in field.metadata and dataclasses.is_dataclass(hints[field.name]):
            given[field.name] = from_options(typing.cast(type, hints[field.name]), values)
        elif _KEY in field.metadata and field.name in values:
            given[field.name] = values[field.name]
    return kind(**given)


def given_values(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a dataclass's options that were given, after `options_of(kind, given_only=True)`."""
    names = (field.name for field, _ in fields_of(kind))
    return {name: values[name] for name in names if values.get(name) not in (None, ())}


def fields_of(kind: type) -> Iterator[tuple[dataclasses.Field[Any], Any]]:
    """The fields of a dataclass that are options, with their types, those of nested dataclasses in their place."""
    hints = _hints(kind)
    for field in dataclasses.fields(kind):
        if _KEY in field.metadata:
            yield field, hints[field.name]
        elif dataclasses.is_dataclass(hints[field.name]):
            yield from fields_of(typing.cast(type, hints[field.name]))


def spec_of(field: dataclasses.Field[Any]) -> Spec:
    """How a field that was made by `option` or `argument` is shown and checked."""
    spec: Spec = field.metadata[_KEY]
    return spec


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _decorator(field: dataclasses.Field[Any], annotation: Any, given_only: bool) -> Callable[[Any], Any]:
    spec = spec_of(field)
    required = field.default is MISSING and field.default_factory is MISSING and not given_only
    default = None if given_only or field.default is MISSING else field.default
    plain, item = _without_none(annotation), None
    if typing.get_origin(plain) is tuple:
        item = typing.get_args(plain)[0]
    parameter_type = spec.kind or _click_type(plain if item is None else item, spec, item)
    if spec.positional:
        return click.argument(
            field.name,
            nargs=-1 if spec.multiple else 1,
            required=required,
            default=None if required or spec.multiple else default,
            metavar=spec.metavar,
            type=parameter_type,
        )
    flag = _flag(field)
    names = [f"--{flag}", *([spec.short] if spec.short else []), field.name]
    settings: dict[str, Any] = {"help": spec.help, "required": required, "hidden": spec.hidden}
    if spec.shown_default is not None:
        settings["show_default"] = spec.shown_default
    elif default is not None and default is not False and default not in ((), ""):
        settings["show_default"] = True
    if plain is bool:
        if default is not False or field.default is not False:  # may be turned off
            return click.option(
                f"--{flag}/--{spec.off or f'no-{flag}'}", field.name, default=default, **settings
            )
        return click.option(*names, is_flag=True, default=False, **settings)
    if not required:
        settings["default"] = default
    return click.option(*names, type=parameter_type, multiple=spec.multiple, metavar=spec.metavar, **settings)


def _without_none(annotation: Any) -> Any:
    """The type X of `X | None`."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        kinds = [kind for kind in typing.get_args(annotation) if kind is not types.NoneType]
        return kinds[0] if len(kinds) == 1 else str
    return annotation


def _click_type(kind: Any, spec: Spec, item: Any) -> click.ParamType | None:
    if item is not None and spec.commas:
        return CommaSeparated(item)
    if typing.get_origin(kind) is Literal:
        return click.Choice(list(spec.choices or typing.get_args(kind)))
    if spec.choices is not None:
        return click.Choice(list(spec.choices))
    if kind is Path:
        return click.Path(path_type=Path)
    low = spec.minimum if spec.above is None else spec.above
    if kind is int and (low is not None or spec.maximum is not None):
        return click.IntRange(low, spec.maximum, min_open=spec.above is not None)  # type: ignore[arg-type]  # whole
    if kind is float:
        return Number(low, spec.maximum, min_open=spec.above is not None)
    plain: dict[Any, click.ParamType] = {
        int: click.INT,
        str: click.STRING,
        bool: click.BOOL,
    }
    return plain.get(kind)


# --- options that commands share ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Where datasets are."""

    data: Path | None = option(
        None, "Data root.", metavar="DIR", shown_default="$TWO_STREAM_DATA, else ./data"
    )


@dataclass(frozen=True, kw_only=True)
class DatasetOptions(DataOptions):
    """Which dataset a command is about; `pipeline.catalog.choose_dataset` takes one where none is named."""

    dataset: str | None = option(
        None,
        f"Dataset, as listed by {typed('pipeline')} datasets.",
        metavar="NAME",
        shown_default="the only known one, else demo",
    )


@dataclass(frozen=True, kw_only=True)
class ShardSetOptions:
    """Which of a dataset's shard sets a command is about; `pipeline.shard_sets.choose_shard_set` takes one for None."""

    shards: str | None = option(
        None,
        "Shard set of the dataset.",
        metavar="NAME",
        shown_default="the only one, else tvl1",
        replaces="--set",
    )


@dataclass(frozen=True, kw_only=True)
class ShareOptions:
    """Which share of the work an array task does."""

    task: int = option(0, "Index of this task, from 0.", minimum=0)
    tasks: int = option(1, "Number of tasks that share the videos.", minimum=1)

    def __post_init__(self) -> None:
        if self.task >= self.tasks:
            raise click.UsageError(
                f"--task {self.task}: expected 0 to {self.tasks - 1}, as there are --tasks {self.tasks}"
            )


# --- groups of commands ---------------------------------------------------------------------------------------------


def given_options(context: click.Context) -> list[str]:
    """The options that were given on the command line, as --name."""
    return [
        parameter.opts[0]
        for parameter in context.command.params
        if parameter.name
        and context.get_parameter_source(parameter.name) == click.core.ParameterSource.COMMANDLINE
        and parameter.param_type_name == "option"
    ]


class LazyCommand(typing.NamedTuple):
    """A command of a `LazyGroup`; its help line is repeated here, so that the group's --help imports no module."""

    module: str
    attribute: str
    help: str


class LazyGroup(click.Group):
    """A group that imports a command's module when the command is called, so that --help is quick."""

    def __init__(self, *args: Any, lazy: Mapping[str, LazyCommand], **settings: Any) -> None:
        """`lazy`: the commands by name, in the order of --help; the rest is click's."""
        super().__init__(*args, **settings)
        self.lazy = lazy

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands' names, in the order in which they were declared."""
        return list(self.lazy)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """A command, its module imported now; None if there is none of that name."""
        if cmd_name not in self.lazy:
            return None
        entry = self.lazy[cmd_name]
        command: click.Command = getattr(importlib.import_module(entry.module), entry.attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The commands and their help lines."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in self.lazy.items()])
