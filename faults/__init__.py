"""Failing each system call of a monitor in turn; see __main__.py."""
