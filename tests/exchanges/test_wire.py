from __future__ import annotations

import random

import pytest

from wadm_mcp.exchanges.wire import plain_text
from wadm_mcp.texts import one_line

PAGE = (
    '<!DOCTYPE HTML PUBLIC "-//W3C//DTD HTML 4.01 Transitional//EN" "http://www.w3.org/TR/html4/loose.dtd">\n'
    '<HTML><HEAD><META HTTP-EQUIV="Content-Type" CONTENT="text/html; charset=iso-8859-1">\n<TITLE>ERROR</TITLE>\n'
    "<style>h1 { color: red; }</style><script>if (1 < 2) { say('<p>no</p>'); }</script></HEAD><BODY>\n"
    '<H1>403 ERROR</H1><HR noshade size="1px">\nAccess from your&nbsp;country is &quot;blocked&quot;.<BR clear="all"></BODY></HTML>'
)


def test_of_a_page_of_html_the_text_is_left_that_a_browser_would_show() -> None:
    assert one_line(plain_text(PAGE.encode())) == '403 ERROR Access from your country is "blocked".'


@pytest.mark.parametrize(
    "body", [b'{"code":-1121,"msg":"a < b > c &amp; d"}', b"", b"plain <b>text</b>", "nicht verfügbar".encode("latin-1")]
)
def test_any_other_text_stays_as_it_is(body: bytes) -> None:
    assert plain_text(body) == body.decode("utf-8", "replace")


def test_no_page_makes_it_fail() -> None:
    chance = random.Random(7)
    pieces = [
        "<html>",
        "<![if",
        "<![foo[",
        "<!--",
        "-->",
        "<title",
        "<script>",
        "</script",
        "</",
        "<",
        ">",
        "&#0;",
        "&#99999999999;",
        "text",
    ]
    for _ in range(2_000):
        body = "<html>" + "".join(chance.choices(pieces, k=chance.randrange(40)))
        assert one_line(plain_text(body.encode())).isprintable()
    assert plain_text(b"<html>" + b"<title" * 100_000) == " "
