"""`python -m wadm_mcp` is `wadm-mcp`."""

from wadm_mcp.cli import main

main()
