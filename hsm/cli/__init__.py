"""The command line: deliver webhooks from a file, and look into a database."""

from hsm.cli._main import main

__all__ = ["main"]
