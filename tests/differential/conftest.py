"""The harness fixture for this folder's tests."""

from __future__ import annotations

from tests.helpers.harness import harness

__all__ = ["harness"]
