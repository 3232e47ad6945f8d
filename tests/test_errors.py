"""What comes out of a task group."""

from __future__ import annotations

import pytest

from wadm_mcp.errors import ExchangeError, StoreError, WadmError, ungrouped

FIRST, SECOND, OTHER = ExchangeError("no answer"), StoreError("disk full"), RuntimeError("a bug")


@pytest.mark.parametrize(
    ("group", "raised"),
    [
        (ExceptionGroup("", [FIRST]), FIRST),
        (ExceptionGroup("", [ExceptionGroup("", [SECOND])]), SECOND),
        (ExceptionGroup("", [FIRST, ExceptionGroup("", [SECOND])]), FIRST),
        (ExceptionGroup("", [ExceptionGroup("", [OTHER])]), OTHER),
        (BaseExceptionGroup("", [stopped := KeyboardInterrupt()]), stopped),
    ],
)
def test_the_error_of_a_group_is_raised_in_its_place(group: BaseExceptionGroup[BaseException], raised: BaseException) -> None:
    with pytest.raises(type(raised)) as caught, ungrouped():
        raise group
    assert caught.value is raised


def test_a_group_of_several_errors_that_are_not_all_ours_is_raised_unchanged() -> None:
    group = ExceptionGroup("", [FIRST, OTHER])
    with pytest.raises(ExceptionGroup) as caught, ungrouped():
        raise group
    assert caught.value is group


def test_an_error_without_a_group_keeps_its_cause() -> None:
    with pytest.raises(WadmError) as caught, ungrouped():
        raise FIRST from OTHER
    assert caught.value.__cause__ is OTHER
