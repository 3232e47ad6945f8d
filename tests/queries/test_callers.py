"""Who counts as one caller, and which of them makes room."""

from __future__ import annotations

import pytest

from wadm_mcp.queries.callers import Caller, Shares, asked_by, current_caller, shared_address


def _caller(name: str) -> Caller:
    """The caller of a name such as `a`, an address alone, or `xs`: the session `s` of the address `x`."""
    return Caller(name[0].strip("-"), name[1:2])


def _shares(*things: str) -> Shares[str]:
    """Each name is a thing, a caller before a number."""
    shares = Shares[str]()
    for thing in things:
        shares.add(thing, _caller(thing.rstrip("0123456789")))
    return shares


@pytest.mark.parametrize(
    ("things", "caller", "makes_room"),
    [
        (["a1", "a2", "b1"], "c", "a"),
        (["a1", "a2", "a3", "b1"], "b", "a"),
        (["a1", "a2", "b1"], "b", "b"),
        (["a1", "a2", "b1"], "a", "a"),
        (["a1", "b1"], "c", None),
        (["a1", "b1"], "b", "b"),
        ([], "a", None),
        (["xs1", "xt1"], "a", "xs"),
        (["xs1", "xt1", "xt2", "a1", "a2"], "b", "xt"),
        (["xs1", "xt1", "xt2", "a1"], "xu", "xt"),
        (["xs1", "xt1", "a1", "a2"], "xs", "xs"),
        (["xs1", "xt1"], "xu", None),
        (["-s1", "-t1"], "a", None),
        (["-s1", "-t1", "-t2", "-t3"], "-s", "-t"),
    ],
)
def test_the_caller_that_would_have_most_makes_room(things: list[str], caller: str, makes_room: str | None) -> None:
    assert _shares(*things).makes_room_for(_caller(caller)) == (makes_room and _caller(makes_room))


def test_addresses_take_turns_and_so_do_the_sessions_of_one() -> None:
    shares = _shares("xs1", "xs2", "xt1", "xu1", "a1", "b1", "b2")
    assert [shares.take_turn() for _ in range(len(shares))] == ["xs1", "a1", "b1", "xt1", "b2", "xu1", "xs2"]
    assert len(shares) == 0


def test_what_was_not_used_for_longest_comes_first() -> None:
    shares = _shares("a1", "b1", "a2", "a3")
    shares.use("a1")
    shares.use("c1")
    assert [shares.of(Caller(name)) for name in "abc"] == [["a2", "a3", "a1"], ["b1"], []]


def test_what_is_given_back_is_counted_no_more() -> None:
    shares = _shares("a1", "a2", "b1")
    for _ in range(2):
        shares.discard("a1")
        shares.discard("b1")
    assert (len(shares), shares.of(Caller("a")), shares.of(Caller("b"))) == (1, ["a2"], [])


def test_the_caller_of_a_scope_is_the_innermost_one() -> None:
    with asked_by("a"):
        with asked_by("b", "session"):
            assert current_caller() == ("b", "session")
        assert current_caller() == ("a", "")
    assert current_caller() == ("", "")


@pytest.mark.parametrize(
    ("host", "shared"),
    [
        ("", ""),
        ("127.0.0.1", ""),
        ("::1", ""),
        ("203.0.113.7", "203.0.113.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("unknown", "unknown"),
    ],
)
def test_addresses_are_counted_singly_and_ipv6_by_network(host: str, shared: str) -> None:
    assert shared_address(host) == shared
