"""Runs conformance checkers of third parties, installed by `npx` and `pip`, against the installed command."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import anyio

SUITE: Final = "@modelcontextprotocol/conformance@0.2.0-alpha.12"
INSPECTOR: Final = "@modelcontextprotocol/inspector@2.12.0"

BIN: Final = Path(sys.executable).parent
WADM: Final = str(BIN / "wadm-mcp")
_TIMEOUT_SECONDS: Final = 120
"""Seconds that a checker may take, the first time with npm's downloads."""


def with_node(env: Mapping[str, str]) -> dict[str, str]:
    """An environment whose node, npm and npx are those installed beside this Python: the machine's own may be too old."""
    return {**env, "PATH": os.pathsep.join((str(BIN), env.get("PATH", os.defpath)))}


async def judged(*command: str, env: Mapping[str, str], cwd: Path) -> str:
    """The output of a checker that found no problem; otherwise the test fails with its output."""
    with anyio.fail_after(_TIMEOUT_SECONDS):
        ended = await anyio.run_process([str(BIN / command[0]), *command[1:]], env=with_node(env), cwd=cwd, check=False)
    said = ended.stdout.decode()
    assert ended.returncode == 0, f"{ended.returncode}\n{said}\n{ended.stderr.decode()}"
    return said
