from __future__ import annotations

import resource
from collections.abc import Generator

import pytest

from wadm_mcp.process.descriptors import descriptor_limit, raise_descriptor_limit


@pytest.fixture
def hard() -> Generator[int]:
    """The hard limit; the soft one is as before afterwards."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield before[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_the_soft_limit_is_raised_to_the_hard_one_within_reason(hard: int) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
    assert descriptor_limit() == 512
    raise_descriptor_limit()
    assert descriptor_limit() == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert descriptor_limit() == (65_536 if hard == resource.RLIM_INFINITY else min(hard, 65_536))


def test_a_limit_that_the_system_does_not_accept_is_replaced_by_a_lower_one(hard: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[tuple[int, int]] = []

    def set_limit(_: int, limits: tuple[int, int]) -> None:
        tried.append(limits)
        if limits[0] > 10_240:
            raise ValueError("not allowed to raise maximum limit")

    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, resource.RLIM_INFINITY))
    monkeypatch.setattr(resource, "setrlimit", set_limit)
    raise_descriptor_limit()
    assert tried == [(65_536, resource.RLIM_INFINITY), (10_240, resource.RLIM_INFINITY)]


def test_a_limit_that_is_high_enough_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (100_000, 100_000))
    monkeypatch.setattr(resource, "setrlimit", lambda *_: pytest.fail("it was set"))
    raise_descriptor_limit()
    assert descriptor_limit() == 100_000
