"""The one exception for mistakes that a user can mend."""

import sys
from types import TracebackType


class UserError(ValueError):
    """A mistake in the data or the call, told in one line: what, where, expected, found, what to do.

    The command line prints it without a traceback and exits with code 2.
    """


def show_without_traceback() -> None:
    """Let this process end on a `UserError` with its one line, as nnU-Net's own commands catch nothing."""
    shown_by = sys.excepthook
    if getattr(shown_by, "_nnunet_softseg", False):
        return

    def show(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        if isinstance(error, UserError):
            print(f"nnunet-softseg: error: {error}", file=sys.stderr)
        else:
            shown_by(kind, error, traceback)

    show._nnunet_softseg = True  # type: ignore[attr-defined]
    sys.excepthook = show
