"""A command as a dataclass: each option is one field, `option("--trim-mm MM", "left out at both ends", 0.0)`.

The type of the field says how its values are read. tyro, which does the same, gives each `-i` a long name,
too, and takes the options after `run nnUNetv2_train` for its own.
"""

import argparse
import dataclasses
import inspect
import itertools
import sys
import textwrap
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, NoReturn, TypeVar

from nnunet_softseg.errors import UserError

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it: 128 and the number of the signal."""
Words = tuple[str, ...]
Pairs = tuple[tuple[str, str], ...]
Settings = TypeVar("Settings")


@dataclasses.dataclass
class Command:
    """One command; the docstring is its help, the first line also its summary in the help of all."""

    exclusive: ClassVar[Words] = ()
    """Fields of which a call may give one."""
    goes_on: ClassVar[bool] = False
    """Whether the same call, after it was interrupted, keeps what is done."""

    def run(self) -> int:
        """Return the exit code: 0, 1 (doctor: a fault), 2 (to be mended) or 3 (drift); Ctrl-C is 130."""
        raise NotImplementedError

    def split(self, settings: type[Settings]) -> tuple[Settings, dict[str, Any]]:
        """Return the settings made of the fields that they share with the command, and all other fields."""
        shared = {field.name for field in dataclasses.fields(settings)}  # type: ignore[arg-type]
        values = {name: value for name, value in vars(self).items() if name in shared}
        return settings(**values), {name: value for name, value in vars(self).items() if name not in shared}


def option(spelling: str, help: str, default: Any = None, **how_to_read: Any) -> Any:
    """Return the field of an option, or without a flag, of an argument known by its place.

    Args:
        spelling: flags and value as the help shows them, "-np N"; lengths are in MM.
        help: the default is added to it unless it is None, empty or a switch.
        default: value if the option is not given.
        how_to_read: arguments of `argparse.add_argument` where the type of the field does not say enough.
    """
    metadata = {"spelling": spelling, "help": help, "how_to_read": how_to_read}
    return dataclasses.field(default=default, kw_only=True, metadata=metadata)


def required(spelling: str, help: str, **how_to_read: Any) -> Any:
    """Return the field of an option that each call gives."""
    return option(spelling, help, dataclasses.MISSING, **how_to_read)


def switch(flag: str, help: str, default: bool = False) -> Any:
    """Return the field of an option without a value, which turns the default around."""
    return option(flag, help, default, action="store_false" if default else "store_true")


def pair(text: str) -> tuple[str, str]:
    """Return name and value of NAME=VALUE."""
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, without spaces around =, found {text!r}")
    return name, value


def exit_code(program: str, read: Callable[[], Command]) -> int:
    """Return the exit code of a program: a command is read and run, mistakes are told in one line."""
    command: Command | None = None
    try:
        command = read()
        return command.run()
    except UserError as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == __package__.partition(".")[0]:
            raise
        print(
            f"{program}: error: expected the package {error.name}, which this needs, found none: "
            "pip install nnunet-softseg, with all that it depends on",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        goes_on = command is not None and command.goes_on and not getattr(command, "overwrite", False)
        what_next = "; the same command goes on" if goes_on else ""
        print(f"{program}: interrupted{what_next}", file=sys.stderr)
        return INTERRUPTED


def print_warnings(warnings: Iterable[str]) -> None:
    """Print one line per warning to the standard error."""
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)


def print_report(report: Any) -> None:
    """Print the warnings of a report, then the report."""
    print_warnings(report.warnings)
    print(report.as_text())


class Parser(argparse.ArgumentParser):
    """Parser that answers a mistake with one line and exit code 2."""

    def read(self, commands: Mapping[str, type[Command]], words: Sequence[str] | None) -> Command:
        """Return the command that the words (None: of this process) name, with the values of its options."""
        words = sys.argv[1:] if words is None else words
        subparsers = self.add_subparsers(metavar="COMMAND", required=True)
        for name, kind in commands.items():
            text = inspect.getdoc(kind) or ""
            parser = subparsers.add_parser(
                name, help=text.partition("\n")[0].rstrip("."), description=text, **LOOKS
            )
            parser.set_defaults(parser=parser, command=kind)
            if name in words:  # the others' options would cost time
                _add_options(parser, kind)
        found, unknown = self.parse_known_args(words)
        values = vars(found)
        of_command: Parser = values.pop("parser")
        command: type[Command] = values.pop("command")
        return of_command._as_command(command, values, unknown)

    def read_one(self, command: type[Command], words: Sequence[str] | None) -> Command:
        """Return the one command of a program, with the values of its options."""
        _add_options(self, command)
        found, unknown = self.parse_known_args(words)
        return self._as_command(command, vars(found), unknown)

    def _as_command(self, command: type[Command], values: dict[str, Any], unknown: Sequence[str]) -> Command:
        if unknown:
            import difflib  # only here: it would take a tenth of the time that help takes

            similar = difflib.get_close_matches(unknown[0], self._option_string_actions, n=1)
            hint = f", did you mean {similar[0]}?" if similar else ""
            self.error(f"unknown option {unknown[0]}{hint}")
        lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
        return command(**values | lists)

    def error(self, message: str) -> NoReturn:
        """End the process with the message."""
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} -h)\n")


class _HelpFormatter(argparse.HelpFormatter):
    """Fills paragraphs to the width of the terminal; indented lines, paths and words with - stay whole."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        blocks = itertools.groupby(text.splitlines(), key=lambda line: line[:1] in ("", " "))
        return "\n".join(
            "\n".join(lines if as_they_are else self._split_lines(" ".join(lines), width))
            for as_they_are, lines in blocks
        )

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)


LOOKS: dict[str, Any] = {
    "formatter_class": _HelpFormatter,
    "argument_default": argparse.SUPPRESS,  # the dataclass has the defaults
}
"""Of a parser whose options are the fields of a command."""


def _add_options(parser: Parser, command: type[Command]) -> None:
    exclusive = parser.add_mutually_exclusive_group() if command.exclusive else parser
    kinds, own = typing.get_type_hints(command), inspect.get_annotations(command)
    fields = sorted(dataclasses.fields(command), key=lambda field: field.name not in own)
    for field in sorted(fields, key=lambda field: field.default is not dataclasses.MISSING):  # required first
        _add_option(exclusive if field.name in command.exclusive else parser, field, kinds[field.name])


def _add_option(group: Any, field: "dataclasses.Field[Any]", kind: Any) -> None:
    words = field.metadata["spelling"].split()
    flags = [word for word in words if word.startswith("-")]
    value = tuple(words[len(flags) :])
    given = field.metadata["how_to_read"]
    how_to_read = dict(given) if "action" in given else _by_type(kind) | given
    if flags:
        how_to_read |= {"dest": field.name, "required": field.default is dataclasses.MISSING}
    if value:
        how_to_read["metavar"] = value if len(value) > 1 else value[0]
    how_to_read["help"] = field.metadata["help"] + _default_shown(field.default, value)
    group.add_argument(*(flags or [field.name]), **how_to_read)


def _by_type(kind: Any) -> dict[str, Any]:
    """Return the arguments of `add_argument` for values of this type."""
    parts = typing.get_args(kind)
    if types.NoneType in parts:  # X | None
        return _by_type(parts[0])
    if typing.get_origin(kind) is tuple:
        return _by_type(parts[0]) | {"nargs": "+" if parts[-1] is Ellipsis else len(parts)}
    return {"choices": parts} if typing.get_origin(kind) is typing.Literal else {"type": kind}


def _default_shown(default: Any, value: Words) -> str:
    if default is dataclasses.MISSING:
        return " (required)"
    if default is None or default == () or isinstance(default, bool):
        return ""
    unit = {"MM": " mm", "DEG": " degrees"}.get(value[0], "") if value else ""
    defaults = default if isinstance(default, tuple) else (default,)
    return f" (default: {' '.join(f'{x:g}' if isinstance(x, float) else str(x) for x in defaults)}{unit})"
