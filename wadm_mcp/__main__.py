"""`python -m wadm_mcp` is `wadm-mcp`. It imports very little, so that signal handlers are set before everything else is loaded."""

from __future__ import annotations

from typing import NoReturn

from wadm_mcp.process.private_files import create_private
from wadm_mcp.process.signals import exit_on_signals
from wadm_mcp.process.standard_streams import reserve_standard_descriptors


def main() -> NoReturn:
    """Run a command line and exit with its status."""
    exit_on_signals()
    create_private()
    reserve_standard_descriptors()
    from wadm_mcp.cli import main as run

    run()


if __name__ == "__main__":
    main()
