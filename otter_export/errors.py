"""The errors that a user of otter-export can meet.

Every message states what was given, what is accepted and what to do next. The command line prints
the message alone and exits with 2 (misuse or bad input) or 1 (a check that failed); the traceback
is shown with ``--verbose`` only. Whatever foreign text a message repeats, it is one line of visible
characters, and no longer than a page.
"""

from otter_export.quoting import one_line


class OtterError(Exception):
    """Base of all errors that are the user's to fix; exit status 2."""

    def __init__(self, message: object = "") -> None:
        super().__init__(one_line(str(message)))


class ConfigError(OtterError):
    """A configuration file is missing, malformed or inconsistent."""


class CheckpointError(OtterError):
    """A checkpoint directory cannot be read as it stands."""


class EngineError(OtterError):
    """An engine directory cannot be loaded, or was asked for something that it cannot do."""


class RequestError(OtterError):
    """A generation request or one of its options is not valid."""


class QueueFullError(RequestError):
    """Too many requests wait already; nothing is wrong with this one, so try it again later."""


class DeadlineError(OtterError):
    """A request was not finished within the time that it was given."""


class CancelledError(OtterError):
    """A request was cancelled, or its scheduler was closed."""


class UnsupportedError(OtterError):
    """The input is well formed, but this version has no rule, family or target for it."""


class MissingDependencyError(OtterError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package '{package}', which is not installed; "
            f"install it with: pip install 'otter-export[{extra}]'"
        )


class VerificationError(OtterError):
    """A check that the user asked for did not hold; exit status 1."""
