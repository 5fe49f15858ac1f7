"""The console commands, a module each: argv to configuration, and exit codes.

Nothing heavy is imported before the arguments are known, so `--help` answers at once.
"""

from siam_bids.cli.app import main

__all__ = ["main"]
