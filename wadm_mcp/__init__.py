"""WADM: an MCP server that records public trades and answers with volume profiles, order flow and their coverage."""

__version__ = "0.1.0"
