"""Errors that a user can cause: one sentence each, and the exit code that goes with it."""


class Paras2sError(Exception):
    """A failure that is reported as one sentence, without a traceback (exit code 1)."""

    exit_code = 1


class UsageError(Paras2sError):
    """The input is at fault: a file, a line, a key (exit code 2). Nothing has been written."""

    exit_code = 2


class TooManyFailed(Paras2sError):
    """The work finished, but more items failed than the user allows (exit code 3)."""

    exit_code = 3
