from __future__ import annotations

import gzip
import hashlib
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from wadm_mcp.collection.backfill import archive_file
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


@pytest.mark.parametrize("build", [zipped, gzipped, plain])
def test_a_file_gives_its_lines_compressed_or_not(tmp_path: Path, build: Callable[[Path], Path]) -> None:
    path = build(tmp_path)
    assert list(lines(path)) == ROWS


@pytest.mark.parametrize("build", [zipped, gzipped])
@pytest.mark.parametrize("part", [0.01, 0.5, 0.9, 0.9999])
def test_a_file_that_is_incomplete_is_an_error(tmp_path: Path, build: Callable[[Path], Path], part: float) -> None:
    path = build(tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    with pytest.raises(ArchiveError, match=f"{path.name}: it is incomplete or damaged"):
        list(lines(path))


@pytest.mark.parametrize("build", [zipped, gzipped])
def test_a_file_with_a_changed_byte_is_an_error(tmp_path: Path, build: Callable[[Path], Path]) -> None:
    path = build(tmp_path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x55
    path.write_bytes(content)
    with pytest.raises(ArchiveError, match="damaged"):
        list(lines(path))


@pytest.mark.parametrize("encoding", ["utf-8", "gb18030"])
def test_a_member_beyond_ascii_is_of_its_symbol_whether_its_name_says_that_it_is_utf_8_or_not(tmp_path: Path, encoding: str) -> None:
    name = "币安人生USDT-aggTrades-2026-07-24.csv"
    assert list(lines(zipped(tmp_path, name), "币安人生USDT")) == ROWS
    path = zipped(tmp_path, "placeholder.csv")
    with zipfile.ZipFile(path) as packed:
        member = packed.infolist()[0]
    raw = name.encode(encoding)
    content = path.read_bytes().replace(b"placeholder.csv", raw)
    length = len(raw).to_bytes(2, "little")
    central = content.rindex(b"PK\x01\x02")
    # The lengths of the name in both headers, and where the list of members begins.
    patched = bytearray(content)
    patched[member.header_offset + 26 : member.header_offset + 28] = length
    patched[central + 28 : central + 30] = length
    end = patched.rindex(b"PK\x05\x06")
    patched[end + 12 : end + 16] = (end - central).to_bytes(4, "little")
    patched[end + 16 : end + 20] = central.to_bytes(4, "little")
    path.write_bytes(patched)
    assert list(lines(path, "币安人生USDT")) == ROWS
    with pytest.raises(ArchiveError, match="which is not of 人生USDT"):
        list(lines(path, "人生USDT"))


def test_lines_are_utf_8_with_or_without_a_byte_order_mark(tmp_path: Path) -> None:
    for mark in (b"", b"\xef\xbb\xbf"):
        path = tmp_path / "plain.csv"
        path.write_bytes(mark + "timestamp,symbol\n1,币安人生USDT\n".encode())
        assert list(lines(path)) == ["timestamp,symbol\n", "1,币安人生USDT\n"]


def test_a_checksum_accepts_its_own_file_and_no_other(tmp_path: Path) -> None:
    path = zipped(tmp_path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    verify(path, f"{digest}  {path.name}\n")
    verify(path, digest.upper())
    with pytest.raises(ArchiveError, match=r"the exchange publishes 0{12}\.{3}; download it again"):
        verify(path, "0" * 64)
    for text in ("", "<html>not found</html>"):
        with pytest.raises(ArchiveError, match="has no SHA-256"):
            verify(path, text)


def test_a_file_that_is_not_a_daily_archive_is_refused_with_its_reason(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="contains 2 files"):
        list(lines(zipped(tmp_path, "one.csv", "two.csv")))
    long = tmp_path / "long.csv"
    long.write_text("1" * 5_000)
    with pytest.raises(ArchiveError, match="more than 4,096 characters"):
        list(lines(long))
    binary = tmp_path / "binary.csv"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ArchiveError, match="it contains bytes that are not UTF-8"):
        list(lines(binary))
    with pytest.raises(ArchiveError, match="cannot be read \\(No such file or directory\\)"):
        list(lines(tmp_path / "absent.csv"))


def test_a_gz_of_several_parts_with_zeros_between_and_after_them_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "BTCUSDT2026-07-24.csv.gz"
    path.write_bytes(b"".join(gzip.compress(row.encode()) + b"\0" * 5 for row in ROWS[:100]) + b"\0" * 300_000)
    assert list(lines(path)) == ROWS[:100]


def test_a_gz_of_parts_without_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "BTCUSDT2026-07-24.csv.gz"
    path.write_bytes(gzip.compress(b"") * 100_001)
    with pytest.raises(ArchiveError, match="more than 100,000 compressed parts"):
        list(lines(path))


@pytest.mark.parametrize("build", [zipped, gzipped])
def test_a_file_that_unpacks_to_many_times_its_size_is_refused(
    tmp_path: Path, build: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive_file, "_ANY_RATIO_BYTES", 100_000)
    monkeypatch.setattr(archive_file, "_MAX_RATIO", 2)
    path = build(tmp_path)
    found: list[str] = []
    with pytest.raises(ArchiveError, match=r"it unpacks to more than [0-9,]+ bytes; no day of an exchange has as much"):
        found.extend(lines(path))
    assert 0 < sum(map(len, found)) <= max(100_000, 2 * path.stat().st_size)


def test_a_file_of_more_lines_than_a_day_may_have_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_file, "_MAX_LINES", 19_999)
    with pytest.raises(ArchiveError, match="more than 19,999 lines"):
        list(lines(plain(tmp_path)))


def test_a_zip_whose_list_of_files_is_long_is_refused_before_the_list_is_read(tmp_path: Path) -> None:
    path = tmp_path / "BTCUSDT-aggTrades-2026-07-24.zip"
    with zipfile.ZipFile(path, "w") as packed:
        for number in range(2_000):
            packed.writestr(f"BTCUSDT-{number:050}.csv", "")
    with pytest.raises(ArchiveError, match="its list of files is too long; a daily archive contains one file"):
        list(lines(path))


def test_a_zip_is_unpacked_only_by_the_method_of_the_exchanges(tmp_path: Path) -> None:
    path = tmp_path / "BTCUSDT-aggTrades-2026-07-24.zip"
    for method in (zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2):
        with zipfile.ZipFile(path, "w", method) as packed:
            packed.writestr("BTCUSDT.csv", "".join(ROWS))
        with pytest.raises(ArchiveError, match=f"it is compressed by method {method}"):
            list(lines(path))
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("BTCUSDT.csv", "".join(ROWS))
    assert list(lines(path)) == ROWS
