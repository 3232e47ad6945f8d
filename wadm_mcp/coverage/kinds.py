"""Chooses the kind of coverage of an instrument: the only module that knows both."""

from __future__ import annotations

from wadm_mcp.coverage.by_connection import ConnectionCoverage
from wadm_mcp.coverage.by_id import SequenceCoverage
from wadm_mcp.coverage.spans import InstrumentCoverage


def new_coverage(*, has_gapless_ids: bool) -> InstrumentCoverage:
    """Empty coverage: by id where the exchange's trade ids are gapless, otherwise by connection."""
    return SequenceCoverage() if has_gapless_ids else ConnectionCoverage()
