"""Command-line options made from the methods' `Parameters`, so that a new method brings its own."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import click

from extract_flow import methods

PREFIX = "parameter_"
CHOSEN = "extract_flow.options.chosen_method"


class MethodCommand(click.Command):
    """A command that takes every method's parameters as options, and lists them method by method in its help.

    A name that several methods share is one option; the chosen method says what values it takes. The callback gets
    them as keywords that begin with `PREFIX`, None where not given. Of the methods' modules only the chosen one's is
    loaded (some take long), unless an option is not among its own.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse with the chosen method's options; with all methods' if one is unknown, so that its owner is told."""
        ctx.meta[CHOSEN] = chosen_method(args)
        try:
            return super().parse_args(ctx, [*args])
        except click.NoSuchOption:
            ctx.meta[CHOSEN] = None
            return super().parse_args(ctx, args)

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """The command's own options, then the methods'."""
        chosen = ctx.meta.get(CHOSEN)
        return super().get_params(ctx) + method_options((chosen,) if chosen else tuple(methods.MODULES))

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The command's own options, then a section for each method with its defaults."""
        super().format_options(ctx, formatter)  # leaves out hidden options, as the methods' are
        for name in methods.MODULES:
            module = methods.module(name)
            rows = [
                (
                    _flags(field) + _metavar(field),
                    f"{field.metadata.get('help', '')}  [default: {field.default}]",
                )
                for field in dataclasses.fields(module.Parameters)
            ]
            presets = ", ".join(module.PRESETS)
            with formatter.section(f"Options of --method {name} (presets: {presets})"):
                formatter.write_dl(rows)


def chosen_method(args: Sequence[str], default: str = "tvl1") -> str | None:
    """The value of --method among words of the command line; None if there is no such method."""
    chosen = default
    for word, following in itertools.pairwise([*args, ""]):
        if word == "--":
            break
        if word == "--method":
            chosen = following
        elif word.startswith("--method="):
            chosen = word.removeprefix("--method=")
    return chosen if chosen in methods.MODULES else None


@functools.cache
def method_options(names: tuple[str, ...]) -> list[click.Parameter]:
    """One option for each name of a parameter of the methods; hidden, because the help shows them by method."""
    by_name: dict[str, list[dataclasses.Field[Any]]] = {}
    for name in names:
        for field in dataclasses.fields(methods.module(name).Parameters):
            by_name.setdefault(field.name, []).append(field)
    options: list[click.Parameter] = []
    for name, fields in by_name.items():
        if all(isinstance(field.default, bool) for field in fields):
            flag = option_name(name)
            options.append(
                click.Option([f"--{flag}/--no-{flag}", PREFIX + name], default=None, hidden=True, type=bool)
            )
        else:
            options.append(click.Option([f"--{option_name(name)}", PREFIX + name], default=None, hidden=True))
    return options


def option_name(field_name: str) -> str:
    """`scale_step` -> `scale-step`; `lambda_`, spelled so because of Python's keyword -> `lambda`."""
    return field_name.rstrip("_").replace("_", "-")


def given_parameters(method: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters that were given as options, converted to the types of the chosen method.

    Raises:
        click.UsageError: one that the method does not have.
        click.BadParameter: a value of the wrong type.
    """
    fields = {field.name: field for field in dataclasses.fields(methods.module(method).Parameters)}
    given = {}
    for key, value in values.items():
        if value is None:
            continue
        name = key.removeprefix(PREFIX)
        if name not in fields:
            having = [
                other
                for other in methods.MODULES
                if any(field.name == name for field in dataclasses.fields(methods.module(other).Parameters))
            ]
            raise click.UsageError(
                f"--{option_name(name)} is no option of the method {method}; {', '.join(having)} "
                f"{'has' if len(having) == 1 else 'have'} it"
            )
        kind = type(fields[name].default)
        parameter_type = click.types.convert_type(kind)
        try:
            given[name] = parameter_type.convert(value, None, None)
        except click.BadParameter as error:
            raise click.BadParameter(error.message, param_hint=f"--{option_name(name)}") from error
    return given


def _flags(field: dataclasses.Field[Any]) -> str:
    name = option_name(field.name)
    return f"--{name} / --no-{name}" if isinstance(field.default, bool) else f"--{name}"


def _metavar(field: dataclasses.Field[Any]) -> str:
    if field.metadata.get("choices"):
        return f" [{'|'.join(map(str, field.metadata['choices']))}]"
    return {bool: "", int: " INTEGER", float: " FLOAT"}.get(type(field.default), " TEXT")
