"""The settings: every environment variable, read and checked once. An invalid value raises a `SettingError` that names it.

Exchanges and the base URLs of their hosts are those of the registry.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple
from urllib.parse import urlsplit

import platformdirs
from dotenv import dotenv_values
from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from wadm_mcp.errors import SettingError
from wadm_mcp.exchanges.exchange import Host, Venue
from wadm_mcp.exchanges.names import read_name
from wadm_mcp.exchanges.registry import exchange_names, find_exchange, is_called
from wadm_mcp.model import DAY, HOUR, MARKETS, MAX_SYMBOL_CHARS, Instrument, Retention, is_symbol
from wadm_mcp.suggest import nearest, plain
from wadm_mcp.texts import printable, redacted, redacted_url


def _list(value: object) -> object:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def _key(key: SecretStr) -> SecretStr:
    text = key.get_secret_value()
    if text != text.strip() or not text.isprintable():
        raise ValueError("must not begin or end with a space or contain control characters, because it is sent in an HTTP header")
    return key


def _folder(folder: Path) -> Path:
    if "\0" in str(folder):
        raise ValueError(f"a folder name cannot contain a null character; {_WRITABLE}")
    try:
        return folder.expanduser()
    except RuntimeError:
        raise ValueError(f"no such home folder; {_WRITABLE}") from None


def _symbols(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        if not is_symbol(name.upper()) or plain(name) != name.upper():
            allowed = f"allowed are letters and digits, at most {MAX_SYMBOL_CHARS}, comma separated, such as BTCUSDT,ETHUSDT"
            raise ValueError(f"{allowed}{_advice_on(name)}")
    return _unique(tuple(name.upper() for name in names), "symbol")


def _advice_on(name: str) -> str:
    """What to write instead of an instrument's name of another form, as a clause; empty where the name says nothing."""
    named = read_name(name)
    if named.problem:
        return f". {printable(name, _SHOWN_CHARS)}: {named.problem}"
    if not is_symbol(named.symbol) or named.symbol == name.upper():
        return ""
    others = [f"{setting}={value}" for setting, value in (("WADM_EXCHANGES", named.exchange), ("WADM_MARKETS", named.market)) if value]
    return f". For {printable(name, _SHOWN_CHARS)} write {' and '.join([named.symbol, *others])}"


def _exchanges(names: tuple[str, ...]) -> tuple[str, ...]:
    return _of(names, exchange_names())


def _markets(names: tuple[str, ...]) -> tuple[str, ...]:
    return _of(names, MARKETS)


def _of(names: tuple[str, ...], allowed: Sequence[str]) -> tuple[str, ...]:
    lowered = tuple(name.lower() for name in names)
    if any(name not in allowed for name in lowered):
        raise ValueError(f"allowed are {', '.join(allowed)}, comma separated")
    return _unique(lowered, "name")


def _unique(names: tuple[str, ...], kind: str) -> tuple[str, ...]:
    if not names:
        raise ValueError(f"at least one {kind} is needed")
    return tuple(dict.fromkeys(names))


def _host_names(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        if not _HOST.fullmatch(name):
            raise ValueError("names or addresses of hosts are needed, comma separated, such as wadm.example or 10.0.0.7")
    return names


def _root_path(path: str) -> str:
    if path and not _ROOT_PATH.fullmatch(path):
        raise ValueError("a path is needed that begins with / and does not end with it, of letters, digits and ._~-, such as /wadm")
    return path


def _base_url(name: str, url: str, schemes: Sequence[str]) -> str:
    """The URL of the setting `name` without a slash at its end; `SettingError` where it has a path, or another scheme."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    valid = parts.scheme in schemes and parts.hostname and port != 0 and not any(mark in url for mark in " #?")
    if not valid or parts.path.strip("/"):
        raise _refusal(name, redacted_url(url), f"a base URL without path is needed, such as {schemes[-1]}://host:port")
    return url.rstrip("/")


_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?\.?(:[0-9]{1,5})?|\[[0-9A-Fa-f:.]+\](:[0-9]{1,5})?")

_ROOT_PATH = re.compile(r"(/[A-Za-z0-9._~-]+)+")

_MIN_KEY_CHARS: Final = 16
"""Length of `API_KEY` beyond loopback, where others can try keys."""
_SECRETS: Final = ("API_KEY", "MONGODB_URL", "REDIS_URL")
_SHOWN_CHARS: Final = 160
_REFUSES: Final = "refuses your address (HTTP 403, 451)"
_FAILS: Final = f"{_REFUSES} or cannot be reached"
"""When the fallback of a socket's host and that of a REST host is used: where this host ..."""
_WRITABLE: Final = "set it to a writable folder"

Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_list)]


class Settings(BaseSettings):
    """WADM's settings, under the names of the environment variables. Made by `read_settings`; immutable."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True, case_sensitive=True)

    ENVIRONMENT: Literal["development", "production"] = Field("development", description="`production`: JSON logs, no debug detail")
    API_KEY: Annotated[SecretStr, AfterValidator(_key)] | None = Field(
        None, description="key for HTTP: `Authorization: Bearer` or `X-API-Key`"
    )
    MONGODB_URL: SecretStr | None = Field(
        None, description="MongoDB database to store the data in, such as mongodb://user:pass@localhost:27017/wadm; without it SQLite"
    )
    REDIS_URL: SecretStr | None = Field(
        None, description="Redis for the shared cache, such as redis://localhost:6379/0; without it the cache is in memory"
    )
    WADM_SYMBOLS: Annotated[Names, AfterValidator(_symbols)] = Field(("BTCUSDT",), description="symbols to record, comma separated")
    WADM_EXCHANGES: Annotated[Names, AfterValidator(_exchanges)] = Field(
        default_factory=exchange_names,
        description=f"exchanges to record, comma separated: {', '.join(f'`{name}`' for name in exchange_names())}",
    )
    WADM_MARKETS: Annotated[Names, AfterValidator(_markets)] = Field(
        ("spot",), description="`spot`, `linear` or both; the first is the default of the tools"
    )
    WADM_HOST: str = Field(
        "127.0.0.1", description=f"address to bind; beyond loopback an `API_KEY` of at least {_MIN_KEY_CHARS} characters is needed"
    )
    WADM_PORT: int = Field(8920, ge=1, le=65535, description="port of `wadm-mcp serve`")
    WADM_ALLOWED_HOSTS: Annotated[Names, AfterValidator(_host_names)] = Field(
        (), description="Host and Origin names accepted beyond loopback, comma separated"
    )
    WADM_ROOT_PATH: Annotated[str, AfterValidator(_root_path)] = Field(
        "", description="path prefix that a reverse proxy removes from requests, such as /wadm; announced to SSE clients"
    )
    WADM_DATA_DIR: Annotated[Path, AfterValidator(_folder)] = Field(
        default_factory=lambda: _default_folder(),
        validate_default=True,
        description="folder of the SQLite file, the journal and the lock",
    )
    WADM_TRADES_TTL_HOURS: int = Field(72, ge=1, le=87_600, description="how long single trades are kept")
    WADM_MINUTES_TTL_DAYS: int = Field(30, ge=1, le=3_650, description="how long footprints, profiles and bars below one hour are kept")
    WADM_HOURS_TTL_DAYS: int = Field(
        365, ge=1, le=3_650, description="how long footprints, profiles and bars of one hour and longer, and coverage, are kept"
    )
    WADM_JOURNAL_MAX_MB: int = Field(1024, ge=1, le=1_000_000, description="maximum size of the journal on disk")
    WADM_BYBIT_CONNECTIONS: int = Field(
        2,
        ge=1,
        le=4,
        description="parallel connections for each group of instruments of an exchange without gapless trade ids (Bybit); one receives "
        "what another misses",
    )
    WADM_HISTORY_HOURS: int = Field(
        24, ge=0, le=8_760, description="hours of history to import, at most `WADM_MINUTES_TTL_DAYS`; 0 turns it off"
    )
    WADM_HISTORY_RAW: bool = Field(
        False, description="also store the single trades of imported history, if the source has the exchange's trade ids"
    )
    WADM_ALLOW_TRACKING: bool | None = Field(
        None, description="`true` lets agents add symbols with `track_market`, `false` does not. Default: over stdio yes, over HTTP no"
    )
    WADM_MAX_INSTRUMENTS: int = Field(50, ge=1, le=1_000, description="maximum number of instruments, including those that agents add")
    hosts: Mapping[str, str] = Field(default_factory=dict[str, str])
    """Base URLs that replace the exchanges' own, by the name of their setting. `with_hosts` adds some."""
    dotenv: Path | None = None
    """The `.env` file that was looked for, which may not exist; None where none was."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)

    @property
    def retention(self) -> Retention:
        """How long each kind of data is kept."""
        return Retention(self.WADM_TRADES_TTL_HOURS * HOUR, self.WADM_MINUTES_TTL_DAYS * DAY, self.WADM_HOURS_TTL_DAYS * DAY)

    @property
    def binds_loopback(self) -> bool:
        """Does the server listen on loopback addresses only?"""
        return is_loopback(self.WADM_HOST)

    def __repr_str__(self, join_str: str) -> str:
        """What `repr` and `str` show: the settings, without the passwords of their URLs."""
        return redacted(super().__repr_str__(join_str))

    def check_exposure(self) -> None:
        """`SettingError` where others could reach the server without a key, or with one that can be guessed."""
        if self.binds_loopback:
            return
        host = printable(self.WADM_HOST, _SHOWN_CHARS)
        if self.API_KEY is None:
            raise SettingError(f"WADM_HOST={host}: API_KEY must be set when the host is not loopback")
        if len(self.API_KEY) < _MIN_KEY_CHARS:
            allowed = f"has {len(self.API_KEY)} characters; with WADM_HOST={host} at least {_MIN_KEY_CHARS} are needed"
            raise _refusal("API_KEY", "", f"{allowed}. Make one with: openssl rand -hex 24")

    @property
    def stays_on_loopback(self) -> bool:
        """Are all configured exchanges on this machine, so that no proxy is used?"""
        return all(
            is_loopback(urlsplit(url).hostname or "")
            for venue in self.venues
            for url in (venue.socket_url, venue.rest_url, venue.archive_url, venue.socket_fallback, venue.rest_fallback)
            if url
        )

    @property
    def venues(self) -> tuple[Venue, ...]:
        """The configured markets of the configured exchanges, without those that an exchange does not have."""
        return tuple(
            self.venue(exchange, market)
            for exchange in self.WADM_EXCHANGES
            for market in self.WADM_MARKETS
            if market in find_exchange(exchange).traits
        )

    def configures(self, instrument: Instrument) -> bool:
        """Whether the settings name this instrument, by its exchange's own symbol or the canonical one."""
        named = instrument.exchange in self.WADM_EXCHANGES and instrument.market in self.WADM_MARKETS
        return named and any(is_called(instrument, symbol) for symbol in self.WADM_SYMBOLS)

    def venue(self, exchange: str, market: str) -> Venue:
        """One market of one exchange, with the base URLs that are set for it. A URL that is set has no fallback."""
        found = find_exchange(exchange)
        socket, rest, archive = found.hosts[market]
        urls = self._url(socket), self._url(rest), self._url(archive) if archive is not None else ""
        fallbacks = ["" if host.setting in self.hosts else host.market_data for host in (socket, rest)]
        return Venue(found, market, *urls, *fallbacks)

    def with_hosts(self, urls: Mapping[str, str]) -> Settings:
        """These settings with other base URLs, by setting name. `SettingError` for an invalid URL or an unknown setting."""
        known = _host_settings()
        unknown = urls.keys() - known.keys()
        if unknown:
            raise SettingError(f"{', '.join(sorted(unknown))}: no exchange has such a setting; the exchanges have {', '.join(known)}")
        fresh = {name: _base_url(name, url, known[name].schemes) for name, url in urls.items()}
        return self.model_copy(update={"hosts": {**self.hosts, **fresh}})

    def _url(self, host: Host) -> str:
        return self.hosts.get(host.setting, host.url)


class _HostSetting(NamedTuple):
    default: str
    schemes: Sequence[str]
    meaning: str


def _host_settings() -> dict[str, _HostSetting]:
    """The settings of every exchange's hosts, by name: sockets and REST first, then archives."""
    every = [hosts for name in exchange_names() for hosts in find_exchange(name).hosts.values()]
    found: dict[str, _HostSetting] = {}
    for hosts in every:
        found[hosts.socket.setting] = _HostSetting(hosts.socket.url, ("ws", "wss"), _meaning(hosts.socket, _REFUSES))
        found[hosts.rest.setting] = _HostSetting(hosts.rest.url, ("http", "https"), _meaning(hosts.rest, _FAILS))
    for archive in [hosts.archive for hosts in every if hosts.archive is not None]:
        found[archive.setting] = _HostSetting(archive.url, ("http", "https"), "base URL of the daily files, no path")
    return found


def _meaning(host: Host, fails: str) -> str:
    """The meaning of a base URL, whose fallback is used where this host `fails`."""
    instead = f"; unless it is set, {host.market_data} is used where this host {fails}" if host.market_data else ""
    return f"base URL, no path{instead}"


def _own_settings() -> dict[str, FieldInfo]:
    """Every setting but those of hosts, by name."""
    return {name: field for name, field in Settings.model_fields.items() if name.isupper()}


def is_loopback(host: str) -> bool:
    """Is this a name or an address of the loopback interface?"""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def read_settings(environ: Mapping[str, str], *, dotenv: Path | None = None, overrides: Mapping[str, Any] | None = None) -> Settings:
    """Settings from `overrides`, the environment and a `.env` file. The first of them that has a value takes precedence.

    `SettingError` names the variable, the value and what is allowed; the value of a secret is never shown.
    """
    file = {name: value for name, value in _file_values(dotenv).items() if value}
    raw: dict[str, Any] = {**file, **{name: value for name, value in environ.items() if value}, **(overrides or {})}
    try:
        settings = Settings(dotenv=dotenv, **{name: raw[name] for name in _own_settings() if name in raw})
    except ValidationError as error:
        raise _setting_error(error, raw) from None
    return settings.with_hosts({name: raw[name] for name in _host_settings() if name in raw})


@contextmanager
def using_folder(folder: Path) -> Generator[None]:
    """Turns an `OSError` of the block, which creates or opens files of the data folder, into its `SettingError`."""
    try:
        yield
    except OSError as error:
        raise unusable_folder(folder, error) from error


def unusable_folder(folder: Path, error: OSError) -> SettingError:
    """The error for a data folder that cannot be created or written."""
    return _refusal("WADM_DATA_DIR", folder, f"the folder cannot be used ({error.strerror}); {_WRITABLE}")


def _file_values(dotenv: Path | None) -> Mapping[str, str | None]:
    try:
        return dotenv_values(dotenv) if dotenv is not None and dotenv.is_file() else {}
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise SettingError(f"{printable(dotenv, _SHOWN_CHARS)}: this .env file cannot be read ({why}); fix or remove it") from error


def settings_table() -> list[tuple[str, str, str]]:
    """Name, default as text, and meaning of every setting: what `.env.example` and the documentation show."""
    rows: list[tuple[str, str, str]] = []
    for name, field in _own_settings().items():
        default = exchange_names() if name == "WADM_EXCHANGES" else field.get_default(call_default_factory=False)
        shown = (
            ",".join(default)
            if isinstance(default, tuple)
            else ""
            if default is None or name == "WADM_DATA_DIR"
            else str(default).lower()
            if isinstance(default, bool)
            else str(default)
        )
        rows.append((name, shown, field.description or ""))
    return rows + [(name, host.default, host.meaning) for name, host in _host_settings().items()]


def dotenv_example() -> str:
    """The text of `.env.example`: every setting with its default, commented out."""
    head = "# Every setting of WADM with its default. Copy to .env and uncomment what you change.\n"
    names = "".join(f"#{name}=\n" for name in ("MONGODB_ROOT_PASSWORD", "MONGODB_USER", "MONGODB_PASSWORD", "REDIS_PASSWORD"))
    address = "\n# for docker-compose.yml only: address of the host on which it publishes port 8920\n#PUBLISH_ADDRESS=127.0.0.1\n"
    tail = f"{address}\n# for docker-compose.yml only: credentials of the servers it starts\n{names}"
    return head + "".join(f"\n# {meaning}\n#{name}={default}\n" for name, default, meaning in settings_table()) + tail


def unknown_settings(environ: Mapping[str, str], dotenv: Path | None = None) -> list[str]:
    """A line for each `WADM_` variable that is not a setting of this version, which is usually a typo."""
    file = _file_values(dotenv)
    known = {*_own_settings(), *_host_settings()}
    return [
        f"{printable(name, _SHOWN_CHARS)} is not a setting of this version of WADM. Nearest: {', '.join(nearest(name, known))}"
        for name in sorted({*environ, *file})
        if name.startswith("WADM_") and name not in known
    ]


def data_dotenv(environ: Mapping[str, str]) -> Path:
    """The `.env` file of the data directory, the only one that a server started by an MCP client reads. It need not exist.

    `SettingError` for an unusable data directory.
    """
    given = Path(environ.get("WADM_DATA_DIR") or _default_folder())
    try:
        file = _folder(given) / ".env"
        file.is_file()
    except ValueError as error:
        raise _refusal("WADM_DATA_DIR", given, str(error)) from None
    except OSError as error:
        raise unusable_folder(given, error) from error
    return file


def _default_folder() -> Path:
    return Path(platformdirs.user_data_dir("wadm", appauthor=False))


_ALLOWED = {
    "WADM_PORT": "a port is a whole number from 1 to 65535",
    "ENVIRONMENT": "allowed are development and production",
}


def _setting_error(error: ValidationError, raw: Mapping[str, Any]) -> SettingError:
    first = error.errors(include_url=False, include_context=True)[0]
    name = str(first["loc"][0])
    context = first.get("ctx", {})
    if name in _ALLOWED:
        allowed = _ALLOWED[name]
    elif first["type"] == "value_error":
        allowed = str(context.get("error", first["msg"]))
    elif first["type"].startswith("bool_"):
        allowed = "allowed are true and false"
    elif first["type"].startswith(("int_", "greater", "less")):
        bounds = [m for m in Settings.model_fields[name].metadata if hasattr(m, "ge") or hasattr(m, "le")]
        low = next((m.ge for m in bounds if hasattr(m, "ge")), 0)
        high = next((m.le for m in bounds if hasattr(m, "le")), "any")
        allowed = f"a whole number from {low} to {high} is needed"
    else:
        allowed = first["msg"]
    return _refusal(name, raw.get(name, ""), allowed)


def _refusal(name: str, given: object, allowed: str) -> SettingError:
    return SettingError(f"{name}={'(hidden)' if name in _SECRETS else printable(given, _SHOWN_CHARS)}: {allowed}")


def environment() -> Mapping[str, str]:
    """A copy of the process environment."""
    return dict(os.environ)
