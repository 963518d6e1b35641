"""Command line flags as typed dataclasses: one definition of a flag's name, type, default and help.

In: a frozen dataclass whose fields are made by `flag`. Out: click options, and a click command that receives one
instance of the dataclass. Each flag also reads the environment variable `EXTRACT_<FLAG>`. Cost: none; only click is
imported. `flags_of` makes such an instance from Python, with the same checks.
"""

import difflib
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, field, fields
from typing import Any, TypeVar

import click

from .errors import InvalidRequest

Flags = TypeVar("Flags")


def flag(default: Any = MISSING, name: str | None = None, **settings: Any) -> Any:
    """Return a dataclass field that `options_of` turns into an option; one without a default is required.

    Args:
        default: the value when the flag is absent.
        name: the flag as click spells it, by default `--` and the field's name with hyphens.
        settings: further arguments of `click.option`, such as `type` and `help`.
    """
    return field(default=default, metadata={"name": name, "settings": settings})


def with_flags(kind: type[Flags]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that gives a click command the options of `kind`, and the command its instance as `flags`."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        names = [one.name for one in _flags_in(kind)]

        @functools.wraps(command)
        def call(**values: Any) -> None:
            command(flags=kind(**{name: values.pop(name) for name in names}), **values)

        later = getattr(command, "__click_params__", [])  # click keeps these in reverse
        call.__click_params__ = [*later, *reversed(options_of(kind))]  # type: ignore[attr-defined]
        return call

    return decorate


def flags_of(kind: type[Flags], given: Mapping[str, Any]) -> Flags:
    """Return the flags with these values by name, checked as on a command line; None is the flag's default.

    The environment is not read. Raises InvalidRequest for a name that is no flag, a flag that is missing, and a value
    that a flag does not take.
    """
    options = {one.name: made for one, made in zip(_flags_in(kind), options_of(kind), strict=True)}
    for name in given:
        if name not in options:
            close = difflib.get_close_matches(name, options, 1)
            raise InvalidRequest(f"{name}= is not known{f'; did you mean {close[0]}=?' if close else ''}")
    if missing := [name for name, option in options.items() if option.required and given.get(name) is None]:
        raise InvalidRequest(f"{missing[0]}= is missing")
    values = {}
    for name, value in ((name, value) for name, value in given.items() if value is not None):
        try:
            values[name] = options[name].type.convert(value, options[name], None)
        except click.UsageError as error:
            raise InvalidRequest(f"{name}={value!r}: {error.message}") from None
    return kind(**values)


def options_of(kind: type) -> Sequence[click.Option]:
    """Return the options of a dataclass of flags, in the order of its fields."""
    return [_option(one) for one in _flags_in(kind)]


def _flags_in(kind: type) -> list[Field[Any]]:
    """Return the fields that `flag` made; others are set in Python."""
    return [one for one in fields(kind) if one.metadata]


def option(name: str, **settings: Any) -> click.Option:
    """Return a click option that also reads `EXTRACT_<FLAG>`."""
    variable = "EXTRACT_" + name.split("/")[0].removeprefix("--").replace("-", "_").upper()
    return click.Option([name], **{"envvar": variable, "show_envvar": True} | settings)


def _option(one: Field[Any]) -> click.Option:
    given = {"required": True} if one.default is MISSING else {"default": one.default, "show_default": True}
    return option(one.metadata["name"] or f"--{one.name.replace('_', '-')}", **given | one.metadata["settings"])
