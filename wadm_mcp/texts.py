"""Texts that come from elsewhere, made fit for a log, a terminal and a model: one rule for what is shown, one for what is hidden.

What an exchange, a file, a database or a client sends may contain line breaks, terminal codes, letters that change the direction of a
text or have no width, and sentences addressed to a model. URLs may contain passwords.
"""

from __future__ import annotations

import re
from typing import Final

_INVISIBLE: Final = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0000-\U000e0fff]")
"""Letters and marks that Python calls printable and that show nothing: fillers, joiners, variation selectors."""
_URL: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://(?:\S{0,500}@)?[^\s\"'<>]*(?<![.,:;])")
"""A URL in a sentence, without the mark that ends a clause after it. A password may have any mark in it, so its user information reaches up
to the last @ before a space, as far as one may be long."""
_QUERY: Final = re.compile(r"[?#]")
_SEARCHED_TIMES: Final = 4
"""How many times the shown length of an exchange's text is searched for letters that can be shown."""


def is_visible(letter: str) -> bool:
    """Whether a letter shows what it is: no control character, nothing that changes the direction of a text or has no width."""
    return letter.isprintable() and _INVISIBLE.match(letter) is None


def printable(given: object, max_chars: int | None = None) -> str:
    """The text of a value as one line: letters that are not visible are escaped; longer than `max_chars` it is cut and its length added."""
    text = str(given)
    cut = text if max_chars is None else text[:max_chars]
    safe = cut
    if not cut.isprintable() or not cut.isascii():
        safe = "".join(letter if is_visible(letter) else letter.encode("unicode_escape").decode() for letter in cut)
    return f"{safe}... ({len(text):,} characters)" if len(cut) < len(text) else safe


def one_line(text: str, most: int = 240) -> str:
    """Untrusted text as one line of at most `most` visible characters; others become spaces."""
    line = " ".join("".join(letter if is_visible(letter) else " " for letter in text[: _SEARCHED_TIMES * most]).split())
    return line if len(line) <= most else line[: most - 1] + "…"


def quoted(text: str, most: int = 160) -> str:
    """Somebody else's words, marked as such: one line in quotes that it cannot end."""
    return f"'{one_line(text, most).rstrip('.').replace(chr(39), chr(0x2019))}'"


def redacted(text: str) -> str:
    """The text with every URL in it as `redacted_url` has it."""
    return _URL.sub(lambda found: redacted_url(found[0]), text) if "://" in text else text


def redacted_url(url: str) -> str:
    """A URL, valid or not, without user name, password, query and fragment, which may be secret."""
    scheme, separator, rest = url.partition("://") if "://" in url else ("", "", url)
    # A password may contain any character, so the last "@" ends it.
    place, *query = _QUERY.split(rest.rpartition("@")[2], maxsplit=1)
    return f"{scheme}{separator}{place}{'?(hidden)' if query else ''}"
