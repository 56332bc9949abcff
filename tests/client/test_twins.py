"""The asyncio client has what the blocking one has, with the same parameters: who knows one knows both."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

import pyconmon_client
from pyconmon_client import aio

# What waits for nothing is the blocking one's, by aio.Runtime.blocking. So is what serves loops of
# another kind: descriptors to poll, and steps that do not wait.
NOT_IN_AIO = {
    "Runtime": {
        "name", "path", "container_dir", "conmon_path", "environment", "dialect", "exit_dir",
        "exit_file", "container_status", "runtime_ready", "network_ready",
        "create_request", "exec_request", "log_options", "modern_argv", "note_created",
    },
    "ExecProcess": {"fileno", "poll"},
    "Attachment": {"closed", "exchange", "recv_now", "send_now"},
    "LogReader": {"has_news", "steps", "waited_for"},
    "ExitEvents": {"fileno", "take"},
}  # fmt: skip
# Monitors are started in the modern dialect there.
OTHER_PARAMETERS = {("Runtime", "create_container"): {"dialect"}}


def public(kind: type) -> set[str]:
    return {name for name in dir(kind) if not name.startswith("_")}


def parameters(function: Any) -> dict[str, tuple[Any, Any]]:
    """Kinds and defaults by name, in their order."""
    found = inspect.signature(function).parameters
    return {name: (each.kind, each.default) for name, each in found.items()}


@pytest.mark.parametrize("kind", NOT_IN_AIO)
def test_twins(kind: str) -> None:
    blocking, native = getattr(pyconmon_client, kind), getattr(aio, kind)
    assert public(blocking) - public(native) == NOT_IN_AIO[kind]
    for name in public(blocking) & public(native):
        one, other = getattr(blocking, name), getattr(native, name)
        if not inspect.isfunction(one):
            continue
        expected = parameters(one)
        for extra in OTHER_PARAMETERS.get((kind, name), ()):
            del expected[extra]
        assert list(parameters(other).items()) == list(expected.items()), name
        assert other.__doc__, f"{name} says nothing"
