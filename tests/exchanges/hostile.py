"""What a broken or hostile peer may send: noise, valid JSON of any shape, and valid frames with something changed."""

from __future__ import annotations

import json
from typing import Any, Final

from hypothesis import strategies as st

JSON_VALUES: Final = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 70), 1 << 70)
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from(["BTCUSDT", "0", "-1", "NaN", "1e5", "0.000000000000000001", "999999999999999999", "Buy"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=8,
)


@st.composite
def mutated(draw: st.DrawFn, valid: list[str]) -> bytes:
    """One of the valid frames with a value replaced or a key removed, or with bytes changed, cut out or put in."""
    frame = draw(st.sampled_from(valid))
    if draw(st.booleans()):
        tree: Any = json.loads(frame)
        node, key = draw(st.sampled_from(_places(tree)))
        if draw(st.booleans()):
            node[key] = draw(JSON_VALUES)
        else:
            del node[key]
        return json.dumps(tree).encode()
    raw = bytearray(frame.encode())
    start = draw(st.integers(0, len(raw)))
    end = draw(st.integers(start, min(len(raw), start + 8)))
    raw[start:end] = draw(st.binary(max_size=8))
    return bytes(raw)


def _places(node: Any) -> list[tuple[Any, Any]]:
    keys = list(node) if isinstance(node, dict) else list(range(len(node))) if isinstance(node, list) else []
    return [(node, key) for key in keys] + [place for key in keys for place in _places(node[key])]


def hostile(valid: list[str]) -> st.SearchStrategy[bytes]:
    """Frames of every invalid kind, and now and then a valid one."""
    noise = st.binary(max_size=64)
    any_json = JSON_VALUES.map(lambda value: json.dumps(value).encode())
    return noise | any_json | mutated(valid)
