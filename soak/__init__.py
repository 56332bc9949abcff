"""Thousands of container lives, each checked; see __main__.py."""
