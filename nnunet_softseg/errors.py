"""The one exception for mistakes that a user can mend."""


class UserError(ValueError):
    """A mistake in the data or the call, told in one line: what, where, expected, found, what to do.

    The command line prints it without a traceback and exits with code 2.
    """
