"""`python -m wadm_mcp` is `wadm-mcp`. It imports next to nothing, so that a signal finds its handler before all else is loaded."""

from __future__ import annotations

from typing import NoReturn

from wadm_mcp.process.signals import leave_on_signals
from wadm_mcp.process.standard_streams import hold_standard_files


def main() -> NoReturn:
    """Run a command line and exit with its status."""
    leave_on_signals()
    hold_standard_files()
    from wadm_mcp.cli import main as run

    run()


if __name__ == "__main__":
    main()
