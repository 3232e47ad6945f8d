from __future__ import annotations

import os
from pathlib import Path

import pytest

from wadm_mcp.process.private_files import create_private, make_private

pytestmark = pytest.mark.skipif(os.name != "posix", reason="Windows has no such rights")


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def readable_by_all(folder: Path, *names: str) -> list[Path]:
    folder.chmod(0o755)
    files: list[Path] = []
    for name in names:
        file = folder / name
        file.parent.mkdir(exist_ok=True)
        file.parent.chmod(0o755)
        file.write_bytes(b"x")
        file.chmod(0o644)
        files.append(file)
    return files


def test_what_is_created_is_readable_by_its_user_alone(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        create_private()
        make_private(tmp_path / "deep" / "data")
        (tmp_path / "deep" / "data" / "wadm.sqlite").write_bytes(b"x")
    finally:
        os.umask(before)
    assert mode(tmp_path / "deep" / "data") == 0o700
    assert mode(tmp_path / "deep" / "data" / "wadm.sqlite") == 0o600


def test_a_data_folder_of_an_earlier_version_is_mended(tmp_path: Path) -> None:
    names = ("wadm.sqlite", "wadm.sqlite-wal", "recorder.lock", "journal/000001.seg", "import/1.order", ".env")
    files = readable_by_all(tmp_path, *names)
    make_private(tmp_path)
    assert [mode(file) for file in files] == [0o600] * len(names)
    assert [mode(folder) for folder in (tmp_path, tmp_path / "journal", tmp_path / "import")] == [0o700] * 3


def test_what_wadm_does_not_know_stays_as_it_is(tmp_path: Path) -> None:
    ours, other = readable_by_all(tmp_path, "wadm.sqlite", "notes.txt")
    (tmp_path / "journal").symlink_to(other)
    make_private(tmp_path)
    assert (mode(ours), mode(other), mode(tmp_path)) == (0o600, 0o644, 0o755)


def test_folders_of_the_same_names_stay_as_they_are_where_wadm_has_not_recorded(tmp_path: Path) -> None:
    (tmp_path / "archive").mkdir()
    (other,) = readable_by_all(tmp_path / "archive", "mine.zip")
    make_private(tmp_path)
    assert mode(other) == 0o644
