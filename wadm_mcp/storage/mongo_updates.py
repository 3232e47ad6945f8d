"""What the MongoDB server works out itself, in one step that it makes alone: updates as pipelines, pure data.

Every expression of a step sees the document as it was before, and nothing where there is none yet.
"""

from __future__ import annotations

from bson.int64 import Int64

from wadm_mcp.model import Instrument, Span
from wadm_mcp.storage.mongo_documents import Document, date


def span_growth(instrument: Instrument, span: Span) -> list[Document]:
    """The update that makes a document of `coverage`, or grows the one that is there as `grown` has it.

    Of what is missing `$max` takes no notice.
    """
    told = {**instrument._asdict(), "basis": span.basis.value, "reason": span.reason, "opened_by": span.opened_by}
    return [
        {
            "$set": {
                **{name: {"$literal": text} for name, text in told.items()},
                "start": date(span.start),
                "end": {"$max": ["$end", date(span.end)]},
                "first_seq": Int64(span.first_seq),
                "last_seq": {"$max": ["$last_seq", Int64(span.last_seq)]},
                "raw": span.raw,
            }
        }
    ]


def lease_taking(owner: str, life: float) -> list[Document]:
    """The update that gives a document of `leases` to an owner for `life` seconds, unless the lease of another owner has not ended.

    The time is the server's own. Earlier releases count the owners in a field `epoch`, which stays as it is and is not needed.
    """
    name = {"$literal": owner}
    mine = {"$eq": [{"$ifNull": ["$owner", name]}, name]}
    free = {"$or": [mine, {"$lt": ["$until", "$$NOW"]}]}
    until = {"$dateAdd": {"startDate": "$$NOW", "unit": "millisecond", "amount": round(life * 1000)}}
    return [
        {
            "$set": {
                "owner": {"$cond": [free, name, "$owner"]},
                "until": {"$cond": [free, until, "$until"]},
            }
        }
    ]
