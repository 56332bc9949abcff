"""The errors of the client: one base class, and a subclass for everything a caller can act on.

Every message says what could not be done, to what, and why; the attributes carry the same facts
for programs. The system's refusals (a full disk, no descriptors left) are among them. Out of scope:
what a type checker would have refused, which may be a TypeError.
"""

from __future__ import annotations

from collections.abc import Sequence


class PyconmonError(Exception):
    """Base of all errors that this package raises itself."""

    def __reduce__(self) -> tuple[object, ...]:
        # Exception's own would call the class with the message alone: pools of processes break.
        return _again, (type(self), self.args, self.__dict__)


def _again(
    kind: type[PyconmonError], args: tuple[object, ...], attributes: dict[str, object]
) -> PyconmonError:
    """An error that comes from another process."""
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(attributes)
    return error


class RuntimeCommandError(PyconmonError):
    """The OCI runtime refused a command: `argv`, its `exit_code` (-N: signal N) and `stderr`."""

    def __init__(self, what: str, argv: Sequence[str], exit_code: int, stderr: str) -> None:
        self.argv = list(argv)
        self.exit_code = exit_code
        self.stderr = stderr
        reason = stderr.strip() or f"exit status {exit_code}, without a word"
        super().__init__(f"could not {what}: {reason}")


class ContainerNotFound(RuntimeCommandError):
    """The OCI runtime has no container of that name."""


class ContainerStateError(PyconmonError):
    """The container is not in a state that allows the operation (not running, not created...)."""


class MonitorError(PyconmonError):
    """The monitor could not be started or misbehaved; `stderr` is what it printed."""

    def __init__(self, message: str, stderr: str = "") -> None:
        self.stderr = stderr
        super().__init__(message)


class SyncPipeError(MonitorError):
    """The monitor sent something on its sync pipe that is not a message of the protocol."""


class CreateError(MonitorError):
    """A container could not be created; the message carries the runtime's reason."""


class CreateTimeout(CreateError):
    """The monitor did not report the container's pid in time; all it had started was ended."""


class ExitFileError(PyconmonError):
    """An exit file that is missing, half-written or not a monitor's; `path` names it."""

    def __init__(self, path: str, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(f"could not take an exit code from {path}: {reason}")


class WaitTimeout(PyconmonError, TimeoutError):
    """What was waited for did not happen within the time limit."""


class RecordError(PyconmonError):
    """A container's record on disk is missing or cannot be read; `path` names it."""

    def __init__(self, path: str, reason: str) -> None:
        self.path = path
        super().__init__(f"could not use the container record {path}: {reason}")


class ExecSyncError(PyconmonError):
    """A command in a container failed; this very class: it ran, but its monitor was lost.

    `stdout` and `stderr` are what it printed so far (bytes), `exit_code` its exit code or -1 where
    there was none, `cause` the reason (an exception or a text), `truncated` whether output was cut.
    """

    def __init__(
        self,
        stdout: bytes,
        stderr: bytes,
        exit_code: int,
        cause: BaseException | str,
        truncated: bool = False,
    ) -> None:
        self.stdout = stdout
        self.stderr = stderr
        self.exit_code = exit_code
        self.cause = cause
        self.truncated = truncated
        super().__init__(
            f"command error: {cause}, stdout: {_shown(stdout)}, stderr: {_shown(stderr)}, "
            f"exit code {exit_code}"
        )


class ExecExitError(ExecSyncError):
    """The command ran and ended with an exit code other than 0."""


class ExecTimeout(ExecSyncError, TimeoutError):
    """The command did not end in time; it and everything it had started was ended."""


class ExecStartError(ExecSyncError):
    """The command could not be started (no such program, no such container, no monitor...)."""


def _shown(data: bytes, limit: int = 2000) -> str:
    """The end of some output as text: the last lines are where errors are."""
    text = data[-limit:].decode("utf-8", "replace")
    return text if len(data) <= limit else "..." + text


class InvalidArgumentError(PyconmonError, ValueError):
    """A value that can't be right: the message says which, what it was, and what would be right."""


class BundleError(PyconmonError):
    """A bundle that can't be written, read or used."""


class NotRunningError(ContainerStateError):
    """Nobody is on the other side: the container has ended, never ran, or its monitor is gone."""


class AttachError(PyconmonError):
    """An attach socket or control FIFO that is there, but does not work or answer as it should."""


class LogFormatError(PyconmonError):
    """A log that is not in k8s-file form."""
