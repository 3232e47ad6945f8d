"""Asks a running demo over each transport: list the tools, ask two questions, read a resource. docs/clients.md shows this file."""

import sys
from pathlib import Path

import anyio
from mcp import Client, StdioServerParameters
from mcp.client.sse import sse_client

URL = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8920"
COMMAND = str(Path(sys.executable).with_name("wadm-mcp"))


async def ask(transport: str, server) -> None:
    print(f"-- {transport}")
    async with Client(server) as client:
        print([tool.name for tool in (await client.list_tools()).tools])
        for tool in ("get_volume_profile", "get_order_flow"):
            result = await client.call_tool(tool, {"symbol": "BTCUSDT", "window": "15m"})
            print(tool, "coverage", result.structured_content["coverage"]["ratio"])
        resource = await client.read_resource("wadm://binance/spot/BTCUSDT/trades")
        print(resource.contents[0].text[:160])


anyio.run(ask, "Streamable HTTP", f"{URL}/mcp")
anyio.run(ask, "SSE", sse_client(f"{URL}/sse"))
anyio.run(ask, "stdio: the client launches it", StdioServerParameters(command=COMMAND, args=["--demo"]))
