"""Updates that the MongoDB server computes itself, atomically: aggregation pipelines as pure data.

Every expression of a stage sees the document as it was before the stage; if there is no document yet, all fields are missing.
"""

from __future__ import annotations

from bson.int64 import Int64

from wadm_mcp.coverage.spans import Span
from wadm_mcp.model import Instrument
from wadm_mcp.storage.mongo_documents import Document, date


def span_upsert(instrument: Instrument, span: Span) -> list[Document]:
    """The update that creates a document of `coverage`, or merges the span into the existing one as `merge_spans` does.

    `$max` ignores missing fields.
    """
    texts = {**instrument._asdict(), "basis": span.basis.value, "reason": span.reason.value, "opened_by": span.opened_by.value}
    return [
        {
            "$set": {
                **{name: {"$literal": text} for name, text in texts.items()},
                "start": date(span.start),
                "end": {"$max": ["$end", date(span.end)]},
                "first_seq": Int64(span.first_seq),
                "last_seq": {"$max": ["$last_seq", Int64(span.last_seq)]},
                "raw": span.raw,
            }
        }
    ]


def lease_acquisition(owner: str, seconds: float) -> list[Document]:
    """The update that leases a document of `leases` to an owner for `seconds`, unless it is leased to another owner.

    The time is the server's own. A field `epoch`, in which earlier releases count the owners, is left unchanged.
    """
    name = {"$literal": owner}
    mine = {"$eq": [{"$ifNull": ["$owner", name]}, name]}
    free = {"$or": [mine, {"$lt": ["$until", "$$NOW"]}]}
    until = {"$dateAdd": {"startDate": "$$NOW", "unit": "millisecond", "amount": round(seconds * 1000)}}
    return [
        {
            "$set": {
                "owner": {"$cond": [free, name, "$owner"]},
                "until": {"$cond": [free, until, "$until"]},
            }
        }
    ]
