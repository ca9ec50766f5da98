"""Errors that users see: one line on stderr and a defined exit code, never a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CmeError(Exception):
    """Anything a user can act on. ``exit_code`` is what the command line returns for it."""

    exit_code = 1


class UsageError(CmeError):
    """Bad input: a wrong name, a broken file, an impossible setting. Raised before work is lost."""

    exit_code = 2


class InterruptedRun(CmeError):  # noqa: N818 - the run stops on request, it does not fail
    """The run stopped early on a signal; the same command resumes it."""

    exit_code = 3


class EngineDiedError(CmeError):
    """An engine process died. Stored answers are intact, and a new engine may go on from there."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the nearest known name, or an empty string if none is near."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def template_problem(err: BaseException) -> str:
    """Return what an error that a template raised on a row says about the row, in one line."""
    text = first_line(err)
    if isinstance(err, KeyError):
        return f"there is no field {text}"
    if "str object has no element 26" in text:
        return "at most 26 options can be lettered"
    return text if isinstance(err, UsageError | ValueError) else f"{type(err).__name__}: {text}"


def first_line(err: BaseException) -> str:
    """Return the message of somebody else's error as one line; its type if it says nothing."""
    text = str(err).strip().splitlines()
    return text[0] if text else type(err).__name__
