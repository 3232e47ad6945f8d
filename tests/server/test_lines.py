from __future__ import annotations

import os
import threading
import tracemalloc

import pytest

from wadm_mcp.server.lines import MAX_LINE_BYTES, Line, read_lines


def _lines(given: bytes) -> list[Line]:
    """The lines of a pipe into which these bytes are written."""
    out, into = os.pipe()

    def write() -> None:
        with open(into, "wb") as stream:
            stream.write(given)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        return list(read_lines(out))
    finally:
        writer.join()
        os.close(out)


def _texts(given: bytes) -> list[str]:
    return [line.text for line in _lines(given)]


def test_lines_are_read_without_blank_ones_and_the_last_one_needs_no_end() -> None:
    assert _texts(b'{"a":1}\r\n\n  \n{"b":2}') == ['{"a":1}\r', '{"b":2}']


@pytest.mark.parametrize("begins", [b"\xef\xbb\xbf", b"\xef\xbb\xbf\n", b""])
def test_a_byte_order_mark_at_the_beginning_is_skipped(begins: bytes) -> None:
    assert _texts(begins + b'{"a":1}\n{"b":2}\n') == ['{"a":1}', '{"b":2}']


def test_of_a_line_that_is_too_long_only_its_ends_are_kept() -> None:
    line = b'{"method":"x","params":"' + b"y" * (4 * MAX_LINE_BYTES) + b'","jsonrpc":"2.0","id":7}'
    tracemalloc.start()
    long, after = _lines(line + b"\n{}\n")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (long.whole, long.size, long.request_id) == (False, len(line), 7)
    assert len(long.text) < 70_000
    assert (after.whole, after.text) == (True, "{}")
    # The bytes that are written are no part of it: they existed before.
    assert peak < 2 * MAX_LINE_BYTES + len(line)


@pytest.mark.parametrize(
    ("text", "request_id"),
    [
        (r'{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"\ud800","id":9}}', 2),
        (r'{"method":"tools/call","params":{"id":9,"x":"\"id\":5\ud800"},"jsonrpc":"2.0","id":"abc"}', "abc"),
        ('{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"x":' + "9" * 6_000 + "}}", 2),
        ('{"jsonrpc":"2.0","id":2,"method":"tools/call","params":' + "[" * 20_000 + "]" * 20_000 + "}", 2),
        ('{"method":"tools/call","params":' + "[" * 200_000 + "]" * 200_000 + ',"jsonrpc":"2.0","id":3}', 3),
        ('{"jsonrpc":"2.0","id":-2,"method":"x', -2),
        ('{"jsonrpc":"2.0","method":"x","id":"' + "y" * 300 + '"}', None),
        ('{"jsonrpc":"2.0","method":"x","id":' + "9" * 6_000 + "}", None),
        (r'{"jsonrpc":"2.0","method":"x","id":"\ud800"}', None),
        ('{"jsonrpc":"2.0","method":"x","id":1.5}', None),
        ('{"jsonrpc":"2.0","method":"x","id":{"id":1}}', None),
        ('{"jsonrpc":"2.0","id":4,"result":{"method":"x"}', None),
        ('{"jsonrpc":"2.0","method":"x","params":{"id":5}}', None),
        (r'{"\"\"\"\"\"', None),
        ('[{"jsonrpc":"2.0","id":4,"method":"x"}]', None),
        ("[" * 100_000, None),
        ("\ufffd", None),
    ],
)
def test_the_request_of_a_line_that_is_no_message_is_found(text: str, request_id: int | str | None) -> None:
    assert Line(text, len(text)).request_id == request_id


def test_a_hostile_line_is_searched_in_linear_time() -> None:
    assert Line('{"method":' + '"\\' * 32_000, 64_010).request_id is None
