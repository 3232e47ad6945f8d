from __future__ import annotations

import gzip
import hashlib
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from wadm_mcp.collection.backfill.archive_file import lines, verify
from wadm_mcp.errors import ArchiveError

ROWS = [f"{number},64000.1,0.{number:05},buy\n" for number in range(1, 20_001)]


def zipped(folder: Path, *names: str) -> Path:
    path = folder / "BTCUSDT-aggTrades-2026-07-24.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in names or ("BTCUSDT-aggTrades-2026-07-24.csv",):
            packed.writestr(name, "".join(ROWS))
    return path


def gzipped(folder: Path) -> Path:
    path = folder / "BTCUSDT2026-07-24.csv.gz"
    path.write_bytes(gzip.compress("".join(ROWS).encode()))
    return path


def plain(folder: Path) -> Path:
    path = folder / "BTCUSDT2026-07-24.csv"
    path.write_text("".join(ROWS))
    return path


@pytest.mark.parametrize("made", [zipped, gzipped, plain])
def test_a_file_gives_its_lines_packed_or_not(tmp_path: Path, made: Callable[[Path], Path]) -> None:
    path = made(tmp_path)
    assert list(lines(path)) == ROWS


@pytest.mark.parametrize("made", [zipped, gzipped])
@pytest.mark.parametrize("part", [0.01, 0.5, 0.9, 0.9999])
def test_a_file_that_is_cut_anywhere_is_told(tmp_path: Path, made: Callable[[Path], Path], part: float) -> None:
    path = made(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * part)])
    with pytest.raises(ArchiveError, match=f"{path.name}: it is cut short or damaged"):
        list(lines(path))


@pytest.mark.parametrize("made", [zipped, gzipped])
def test_a_file_with_a_changed_byte_is_told(tmp_path: Path, made: Callable[[Path], Path]) -> None:
    path = made(tmp_path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x55
    path.write_bytes(content)
    with pytest.raises(ArchiveError, match="damaged"):
        list(lines(path))


def test_a_checksum_proves_the_file_it_was_made_of_and_no_other(tmp_path: Path) -> None:
    path = zipped(tmp_path)
    right = hashlib.sha256(path.read_bytes()).hexdigest()
    verify(path, f"{right}  {path.name}\n")
    verify(path, right.upper())
    with pytest.raises(ArchiveError, match=r"the exchange states 0{12}\.{3}; fetch it again"):
        verify(path, "0" * 64)
    for text in ("", "<html>not found</html>"):
        with pytest.raises(ArchiveError, match="holds no SHA-256"):
            verify(path, text)


def test_what_is_no_archive_of_a_day_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="holds 2 files"):
        list(lines(zipped(tmp_path, "one.csv", "two.csv")))
    long = tmp_path / "long.csv"
    long.write_text("1" * 5_000)
    with pytest.raises(ArchiveError, match="more than 4,096 characters"):
        list(lines(long))
    binary = tmp_path / "binary.csv"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ArchiveError, match="it is damaged or no text"):
        list(lines(binary))
    with pytest.raises(ArchiveError, match="cannot be read \\(No such file or directory\\)"):
        list(lines(tmp_path / "absent.csv"))
