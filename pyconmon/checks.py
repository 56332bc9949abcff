"""The checks of a command line, and what they complete in the Options.

Callers rely on their order, and their tests on the texts: whoever feeds a monitor two mistakes gets
the same complaint as from C conmon. Every failure is one line and exit status 1, with nothing
started and no file made. Opening the log file is not done here: it follows, in __main__.
"""

from __future__ import annotations

import os

from .options import Options, UsageError, shown

_LEVELS = {
    "error": "error",
    "fatal": "error",
    "panic": "error",
    "warn": "warning",
    "warning": "warning",
    "info": "info",
    "debug": "debug",
    "trace": "trace",
}

_LABEL_KEY = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_"

_SHORT_ID = 12  # characters of the cid that become the journal's CONTAINER_ID


def check(options: Options, *, created: bool = False) -> Options:
    """The options with defaults, log level and log drivers filled in. Raises UsageError.

    With `created` they are those of a container that exists already and needs its runtime no more,
    which may have been removed or replaced since.
    """
    if options.log_max_files < 0:
        raise _plain(f"log-max-files must be non-negative, got {options.log_max_files}")
    if options.log_rotate and options.log_max_files == 0:
        raise _plain("log-max-files must be at least 1 when log-rotate is enabled, got 0")
    if options.recover is not None or options.recover_under is not None:
        return _check_recovery(options)
    if options.cid is None:
        raise _plain("Container ID not provided. Use --cid")
    changes: dict[str, object] = {"log_level": _level(options.log_level)}
    _check_mode(options)
    _check_runtime(options, created)
    cwd = _working_directory()
    if options.bundle is None and not options.exec:
        changes["bundle"] = cwd
    if options.container_pidfile is None:
        changes["container_pidfile"] = f"{cwd}/pidfile-{options.cid}"
    if options.exit_delay < 0:
        raise _error("Delay before the exit command (--exit-delay) must be 0 or more")
    changes["log_drivers"] = log_drivers = _drivers(options)
    drivers = [driver for driver, _path in log_drivers]
    _check_drivers(options, drivers)
    _check_names(options, drivers)
    return options.replace(**changes)


def warnings(options: Options) -> list[str]:
    """What deserves a warning (without its prefix) but stops nobody. Wants checked options."""
    if options.no_container_partial_message and ("journald", None) not in options.log_drivers:
        return ["--no-container-partial-message has no effect without journald log driver"]
    return []


def _plain(text: str) -> UsageError:
    """An error found before the monitor's own logging is set up, in conmon."""
    return UsageError("conmon: " + text)


def _error(text: str) -> UsageError:
    return UsageError("[conmon:e]: " + text)


def _check_recovery(options: Options) -> Options:
    """--recover and --recover-under take everything else from the state files they read."""
    if options.recover is not None and options.recover_under is not None:
        raise _plain("Cannot use --recover and --recover-under at the same time")
    if options.sync and options.recover_under is not None:
        raise _plain("Cannot use --sync and --recover-under at the same time")
    if not (options.recover or options.recover_under):
        raise _plain("The directory to recover from must not be empty")
    return options.replace(log_level=_level(options.log_level))


def _level(name: str) -> str:
    level = _LEVELS.get(name.lower())
    if level is None:
        raise _error(f"No such log level {shown(name)}")
    return level


def _check_mode(options: Options) -> None:
    if options.restore is not None and options.exec:
        raise _error("Cannot use 'exec' and 'restore' at the same time")
    if options.exec_attach and not options.exec:
        raise _error("Attach can only be specified with exec")
    if options.exec_attach and options.api_version < 1:
        raise _error("Attach can only be specified for a non-legacy exec session")
    if options.dialect == "classic":
        return  # has no cuuid
    # CRI-O's exec, which speaks API version 0, gives none.
    if options.cuuid is None and (not options.exec or options.api_version >= 1):
        raise _error("Container UUID not provided. Use --cuuid")


def _check_runtime(options: Options, created: bool) -> None:
    if options.runtime is None:
        raise _error("Runtime path not provided. Use --runtime")
    # access() as conmon does it, so that a test which hands a directory still gets a failed create.
    if not created and not os.access(options.runtime, os.X_OK):
        why = "Permission denied"
        try:
            os.stat(options.runtime)
        except OSError as error:
            why = error.strerror or str(error)
        raise _error(f"Runtime path {shown(options.runtime)} is not valid {why}")
    if options.exec and options.exec_process_spec is None and options.dialect != "classic":
        raise _error("Exec process spec path not provided. Use --exec-process-spec")


def _working_directory() -> str:
    try:
        return os.getcwd()
    except OSError as error:
        raise _error(f"Failed to get working directory {error.strerror}") from None


def _drivers(options: Options) -> tuple[tuple[str, str | None], ...]:
    """The log drivers in the order given, each once; of several files the last one counts."""
    if not options.log_paths:
        if options.dialect == "classic":
            return ()
        raise _error("Log driver not provided. Use --log-path")
    # Imported here since a classic monitor, and --version, have no use for it.
    from .logs import parse_log_path

    drivers: dict[str, str | None] = {}
    for spec in options.log_paths:
        try:
            parsed = parse_log_path(spec)
        except ValueError as error:
            raise _error(shown(str(error))) from None
        if parsed is not None:
            drivers[parsed[0]] = parsed[1]
    return tuple(drivers.items())


def _check_drivers(options: Options, drivers: list[str]) -> None:
    journald = "journald" in drivers
    if "k8s-file" in drivers and not journald:
        if options.log_tag is not None:
            raise _error("k8s-file doesn't support --log-tag")
        if options.log_labels:
            raise _error("k8s-file doesn't support --log-label")
    if not journald:
        return
    if len(os.fsencode(options.cid or "")) <= _SHORT_ID:
        raise _error(f"Container ID must be longer than {_SHORT_ID} characters")
    for label in options.log_labels:
        key, _equals, _value = label.partition("=")
        wrong = "Container labels must be in format LABEL=VALUE"
        if label[:1] == "=":
            raise _error(f"{wrong} (no LABEL present in '{shown(label)}')")
        if label.count("=") != 1:
            raise _error(f"{wrong} (none or more than one '=' present in '{shown(label)}')")
        if key.strip(_LABEL_KEY):
            raise _error(
                "Container label names must contain only uppercase letters, numbers and underscore"
                f" (in '{shown(label)}')"
            )


def _check_names(options: Options, drivers: list[str]) -> None:
    """An id that becomes a file's name must be able to be one, and must stay in its directory.

    C conmon finds out when the container has ended, and then exits without having told anybody.
    """
    cid = options.cid or ""
    if options.exit_dir is not None:
        _check_name("Container ID", cid)
    if options.container_pidfile is None:
        _check_name("Container ID", f"pidfile-{cid}", cid)
    attachable = (options.bundle is not None or not options.exec) and "passthrough" not in drivers
    if options.cuuid is not None and attachable and not options.full_attach:
        _check_name("Container UUID", options.cuuid)


def _check_name(what: str, name: str, text: str | None = None) -> None:
    if text is None:
        text = name
    if name in ("", ".", "..") or "/" in name:
        raise _error(f"{what} '{shown(text)}' can't be the name of a file")
    if len(os.fsencode(name)) > 255:
        raise _error(f"{what} '{shown(text)}' is too long for the name of a file")
