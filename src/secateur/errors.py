"""Errors that a user can act on: what, where, what was expected and found, and the remedy."""

from __future__ import annotations


class SecateurError(Exception):
    """A failure with a one-line explanation; the command line prints it without a traceback.

    Args:
        what: The failure in a few words, without a full stop.
        where: File, recipe key or module it happened in.
        expected: What would have been right.
        found: What was found instead.
        remedy: What to do.

    Examples:
        >>> print(SecateurError("unknown network", where="network.name", found="resnet"))
        unknown network (network.name): found resnet
    """

    exit_code = 1
    """1: the work failed. 2 (:class:`UsageError`): an argument is invalid."""

    def __init__(
        self,
        what: str,
        *,
        where: object = None,
        expected: object = None,
        found: object = None,
        remedy: str | None = None,
    ) -> None:
        self.what, self.where = what, where
        head = what if where is None else f"{what} ({where})"
        facts = [
            f"{name} {value}"
            for name, value in (("expected", expected), ("found", found))
            if value is not None
        ]
        line = head + (": " + ", ".join(facts) if facts else "")
        if remedy is not None:
            line += f"; {remedy}"
        super().__init__(" ".join(line.split()))


class UsageError(SecateurError):
    """An argument that is missing or of the wrong kind."""

    exit_code = 2


class RecipeError(UsageError):
    """A recipe that cannot be read or is invalid."""


class DataError(UsageError):
    """Images or labels that are missing, corrupt or too few."""


class NetworkError(UsageError):
    """A network that does not exist, or cannot be built, traced or loaded."""


class StoreError(SecateurError):
    """A folder that cannot be written, or a stored result that is damaged."""


class FileError(StoreError):
    """A given file that cannot be read, or an output path that cannot be written."""

    exit_code = UsageError.exit_code


class InterruptedByUserError(SecateurError):
    """Ctrl-C; the exit code is the shell's for SIGINT."""

    exit_code = 130


class TrainingError(SecateurError):
    """A training that diverged."""


class ArtifactError(UsageError):
    """A file that is damaged, of a newer version, or has forbidden content."""

    def at(self, where: object) -> ArtifactError:
        """The same error with the file's name."""
        return ArtifactError(f"{where}: {self}")
