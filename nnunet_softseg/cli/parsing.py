"""What the parsers of all commands share."""

import argparse
from typing import Any

Subparsers = Any  # argparse keeps the type of add_subparsers() private


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults and keeps the line breaks of descriptions."""


def add_command(
    subparsers: Subparsers, name: str, summary: str, details: str = ""
) -> argparse.ArgumentParser:
    """Return the parser of one command; its summary is its line in the help of all."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        name, help=summary, description=f"{summary}\n\n{details}".strip(), formatter_class=HelpFormatter
    )
    return parser
