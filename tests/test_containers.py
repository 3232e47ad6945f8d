"""Checks of the container files that need no container engine."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import anyio
import pytest
from anyio.abc import Process
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError
from redis.retry import Retry
from ruamel.yaml import YAML

from tests.end_to_end.process import environment, free_port, until
from tests.market import ManualClock
from tests.redis_server import redis_binary
from wadm_mcp.health import Health
from wadm_mcp.settings import Settings, dotenv_example, read_settings, settings_table
from wadm_mcp.storage.redis_cache import RedisCache

ROOT = Path(__file__).parents[1]
COMPOSE: dict[str, Any] = cast(dict[str, Any], YAML(typ="safe").load((ROOT / "docker-compose.yml").read_text()))
DOCKERFILE = (ROOT / "Dockerfile").read_text()
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]


def megabytes(text: str) -> int:
    assert text.endswith("m")
    return int(text[:-1])


def test_the_compose_file_is_valid_by_the_schema_of_its_specification() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(ROOT / "docker-compose.yml")]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_three_services_fit_two_gigabytes_and_none_is_public_by_default() -> None:
    assert set(SERVICES) == {"wadm-api", "wadm-mongodb", "wadm-redis"}
    assert sum(megabytes(service["mem_limit"]) for service in SERVICES.values()) <= 1_900
    assert SERVICES["wadm-api"]["ports"] == ["${PUBLISH_ADDRESS:-127.0.0.1}:8920:8920"]
    assert SERVICES["wadm-mongodb"]["ports"] == ["127.0.0.1:27017:27017"]
    assert SERVICES["wadm-redis"]["ports"] == ["127.0.0.1:6379:6379"]
    assert re.fullmatch(r"mongo:7\.0\.\d+", SERVICES["wadm-mongodb"]["image"])
    assert re.fullmatch(r"redis:7\.\d+\.\d+-alpine", SERVICES["wadm-redis"]["image"])
    assert all(service["networks"] == ["wadm-network"] and service["restart"] and service["logging"] for service in SERVICES.values())


def test_our_service_starts_once_the_others_are_healthy() -> None:
    assert SERVICES["wadm-api"]["depends_on"] == {name: {"condition": "service_healthy"} for name in ("wadm-mongodb", "wadm-redis")}
    assert all("healthcheck" in SERVICES[name] for name in ("wadm-mongodb", "wadm-redis"))


def test_no_service_has_a_capability_more_privileges_or_unlimited_processes_and_descriptors() -> None:
    for name, service in SERVICES.items():
        assert service["cap_drop"] == ["ALL"], name
        assert "cap_add" not in service, name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert 0 < service["pids_limit"] <= 512, name
        assert 0 < service["ulimits"]["nofile"]["soft"] <= service["ulimits"]["nofile"]["hard"] <= 65_536, name
    # The API's image names its own user; the entry points of the others start as root unless they are told not to.
    assert {name: service.get("user") for name, service in SERVICES.items()} == {
        "wadm-api": None,
        "wadm-mongodb": "mongodb",
        "wadm-redis": "redis",
    }


def test_file_systems_are_read_only_where_compose_copies_no_file_into_them_and_those_in_memory_are_bounded() -> None:
    for name, service in SERVICES.items():
        assert service.get("read_only", False) is ("configs" not in service), name
        for mount in service["tmpfs"]:
            options = mount.partition(":")[2].split(",")
            assert {"noexec", "nosuid", "nodev"} <= set(options), name
            assert any(option.startswith("size=") for option in options), name


def test_the_compose_file_contains_no_credential_and_requires_each_one() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    credentials = {"API_KEY", "MONGODB_ROOT_PASSWORD", "MONGODB_USER", "MONGODB_PASSWORD", "REDIS_PASSWORD"}
    assert set(re.findall(r"\$\{([A-Z_]+):\?", text)) == credentials
    # Every other variable has a default, so that none is needed.
    assert re.findall(r"\$\{[A-Z_]+[^A-Z_:]|\$\{[A-Z_]+:[^?-]", text) == []


def test_each_service_gets_only_its_own_secrets_one_variable_at_a_time() -> None:
    assert not any("env_file" in service for service in SERVICES.values())
    used = {name: set(_secrets(service)) for name, service in SERVICES.items()}
    assert used == {
        "wadm-api": {"API_KEY", "MONGODB_PASSWORD", "REDIS_PASSWORD"},
        "wadm-mongodb": {"MONGODB_ROOT_PASSWORD", "MONGODB_PASSWORD"},
        "wadm-redis": {"REDIS_PASSWORD"},
    }
    # Every user of the host can read a command line.
    assert not any("PASSWORD" in json.dumps([service.get("command"), service.get("healthcheck")]) for service in SERVICES.values())


def _secrets(service: dict[str, Any]) -> list[str]:
    return re.findall(r"\$\{(API_KEY|\w+_PASSWORD)", json.dumps(service))


def test_every_setting_reaches_our_service_from_the_environment_file() -> None:
    given: dict[str, str] = SERVICES["wadm-api"]["environment"]
    names = [name for name, _, _ in settings_table()]
    proxies = ["HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"]
    assert sorted(given) == sorted([*names, *proxies])
    fixed = {"ENVIRONMENT", "WADM_HOST", "WADM_PORT", "WADM_DATA_DIR"}
    composed = {"API_KEY", "MONGODB_URL", "REDIS_URL"}
    for name in {*names, *proxies} - fixed - composed:
        assert given[name] == f"${{{name}:-}}"
    example = dotenv_example()
    for name in set(re.findall(r"\$\{([A-Z_]+)", (ROOT / "docker-compose.yml").read_text())) - set(proxies):
        assert f"\n#{name}=" in example


def test_our_user_of_mongodb_is_not_root_and_has_the_roles_that_we_need() -> None:
    script = COMPOSE["configs"]["wadm-mongodb-user"]["content"]
    (mount,) = SERVICES["wadm-mongodb"]["configs"]
    assert mount["source"] == "wadm-mongodb-user"
    assert mount["target"].startswith("/docker-entrypoint-initdb.d/")
    assert re.findall(r'role: "(\w+)", db: "(\w+)"', script) == [("readWrite", "wadm"), ("dbAdmin", "wadm")]
    given = set(SERVICES["wadm-mongodb"]["environment"])
    assert set(re.findall(r"process\.env\.(\w+)", script)) <= given
    assert SERVICES["wadm-api"]["environment"]["MONGODB_URL"].endswith("@wadm-mongodb:27017/wadm")
    assert SERVICES["wadm-mongodb"]["environment"]["MONGO_INITDB_ROOT_USERNAME"] not in SERVICES["wadm-api"]["environment"]["MONGODB_URL"]


@pytest.mark.anyio
async def test_our_user_of_redis_may_do_what_the_cache_does_and_nobody_else_anything() -> None:
    password = "0123456789abcdef"
    async with _composed_redis(password) as (server, port):
        health = Health(ManualClock().now)
        async with RedisCache(f"redis://wadm:{password}@127.0.0.1:{port}/0", "tape", health, answer_seconds=5) as cache:
            await cache.put("key", b"value", 60)
            assert await cache.get(["key", "other"]) == [b"value", None]
            await cache.delete(["key"])
            assert await cache.get(["key"]) == [None]
            assert cache.state.ok, cache.state.detail
        with _redis_client(f"wadm:{password}", port) as wadm:
            for command in (("CONFIG", "GET", "*"), ("FLUSHALL",), ("SET", "another", "x"), ("KEYS", "*"), ("EVAL", "return 1", "0")):
                with pytest.raises(NoPermissionError):
                    wadm.execute_command(*command)
        for credentials in ("", f":{password}", "wadm:guess"):
            with _redis_client(credentials, port) as stranger, pytest.raises(AuthenticationError):
                stranger.ping()
        assert password not in Path(f"/proc/{server.pid}/cmdline").read_text()
        kind, check = SERVICES["wadm-redis"]["healthcheck"]["test"]
        assert kind == "CMD-SHELL"
        probe = check.replace("redis-cli", f"redis-cli -p {port}")
        for secret, healthy in ((password, True), ("guess", False)):
            checked = await anyio.run_process(["/bin/sh", "-c", probe], env=_redis_environment(secret), check=False)
            assert (checked.returncode == 0) is healthy


def _redis_environment(password: str) -> dict[str, str]:
    return {"PATH": f"{Path(redis_binary()).parent}{os.pathsep}{os.environ['PATH']}", "REDISCLI_AUTH": password}


def _redis_client(credentials: str, port: int) -> Redis:
    return Redis.from_url(f"redis://{credentials}@127.0.0.1:{port}/0", socket_timeout=5, retry=Retry(NoBackoff(), 0))


@asynccontextmanager
async def _composed_redis(password: str) -> AsyncGenerator[tuple[Process, int]]:
    """A redis-server that runs as the compose file says, but on a free port of loopback: its process and the port."""
    shell, option, script = SERVICES["wadm-redis"]["command"]
    port = free_port()
    script = script.replace("$$", "$").replace("redis-server -", f"redis-server - --port {port} --bind 127.0.0.1", 1)
    async with await anyio.open_process(
        [shell, option, script], env=_redis_environment(password), stdout=subprocess.DEVNULL, stderr=None
    ) as process:

        async def answers() -> bool:
            with _redis_client(f"wadm:{password}", port) as client:
                try:
                    return bool(client.ping())
                except RedisError:
                    return False

        try:
            await until(answers)
            yield process, port
        finally:
            process.kill()


def test_the_build_installs_only_wheels_of_a_known_hash_and_leaves_no_build_tool(tmp_path: Path) -> None:
    steps = re.findall(r"^RUN (.*)$", DOCKERFILE.split("\nFROM ")[1].replace("\\\n", ""), re.MULTILINE)
    for name in ("requirements.txt", "requirements-build.txt"):
        (step,) = [step for step in " && ".join(steps).split(" && ") if step.endswith(f"-r {name}") or f"-r {name} " in step]
        assert "--require-hashes --only-binary :all:" in step
    own = tmp_path / "wadm"
    for step in steps:
        # A build copies its files first; here it runs in the checkout.
        command = step.replace("python -m venv", f"{sys.executable} -m venv").replace("/opt/", f"{tmp_path}/")
        done = subprocess.run(["/bin/sh", "-ec", command], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    (packages,) = (own / "lib").glob("python*/site-packages")
    assert not [path.name for path in packages.iterdir() if re.match("(pip|setuptools|wheel|pkg_resources|hatchling)", path.name)]
    shown = subprocess.run([str(own / "bin" / "wadm-mcp"), "--version"], capture_output=True, text=True, check=False)
    assert shown.stdout.startswith("wadm-mcp ")
    assert re.findall(r"^COPY --from=build (\S+) ", DOCKERFILE, re.MULTILINE) == ["/opt/wadm"]


def test_the_end_image_is_cleared_of_the_base_images_build_tools(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "base")], check=True)
    (step,) = [step for step in re.findall(r"^RUN ((?:.*\\\n)*.*)$", DOCKERFILE.rsplit("FROM ", 1)[1], re.MULTILINE) if "ensurepip" in step]
    script = re.findall(r'python -c "(.*?)"', step.replace("\\\n", ""), re.DOTALL)[0]
    # The standard library of this machine must stay.
    harmless = script.replace("shutil.rmtree(pathlib.Path(ensurepip.__file__).parent);", "")
    assert harmless != script
    done = subprocess.run([str(tmp_path / "base" / "bin" / "python"), "-c", harmless], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (packages,) = (tmp_path / "base" / "lib").glob("python*/site-packages")
    assert list(packages.iterdir()) == []


def test_the_variables_of_our_service_are_valid_settings() -> None:
    given = SERVICES["wadm-api"]["environment"]
    filled = {name: re.sub(r"\$\{\w+:-[^}]*\}", "", re.sub(r"\$\{\w+:\?[^}]*\}", "x" * 32, str(value))) for name, value in given.items()}
    settings = read_settings(filled)
    assert settings.WADM_PORT == 8920
    assert not settings.binds_loopback


def test_the_image_is_slim_pinned_unprivileged_and_leaves_the_build_tools_behind() -> None:
    stages = re.findall(r"^FROM (\S+)(?: AS (\S+))?$", DOCKERFILE, re.MULTILINE)
    assert [name for _, name in stages] == ["build", ""]
    assert all(re.fullmatch(r"python:3\.11\.\d+-slim-\w+", image) for image, _ in stages)
    final = DOCKERFILE.rsplit("FROM ", 1)[1]
    assert "--uid 8920 " in final
    # A number, which needs no look-up to be known as unprivileged.
    assert "USER 8920\n" in final
    assert "install -d -m 0700 -o wadm -g wadm /data" in final


def test_the_environment_of_the_image_is_made_of_settings() -> None:
    final = DOCKERFILE.rsplit("FROM ", 1)[1]
    names = set(re.findall(r"\b((?:WADM_|ENVIRONMENT)\w*)=", final))
    assert names
    assert names <= set(Settings.model_fields)


@pytest.mark.anyio
@pytest.mark.skipif(os.name != "posix" or os.getuid() != 0, reason="only root can become an unprivileged user")
async def test_the_installed_entry_point_runs_unprivileged_on_a_read_only_tree_and_its_health_check_passes(tmp_path: Path) -> None:
    for folder in (tmp_path, *tmp_path.parents):
        if folder.name.startswith("pytest-of-") or "pytest-of-" in str(folder.parent):
            folder.chmod(0o755)
    installed = tmp_path / "installed"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(installed), str(ROOT)]
    made = await anyio.run_process(install, check=False)
    assert made.returncode == 0, made.stderr.decode()
    data = tmp_path / "data"
    data.mkdir()
    os.chown(data, 65534, 65534)
    port = free_port()
    env = environment(data, WADM_PORT=str(port), PYTHONPATH=f"{installed}{os.pathsep}{sysconfig.get_path('purelib')}", HOME=str(data))
    python = _python_for_all()
    if python is None:
        pytest.skip("an unprivileged user can run no Python of this version here")
    command = [python, "-P", str(installed / "bin" / "wadm-mcp"), "serve", "--demo"]
    async with await anyio.open_process(command, env=env, cwd=data, user=65534, group=65534, extra_groups=[], stderr=None) as process:
        try:
            probe = _health_check()

            async def healthy() -> bool:
                return (await anyio.run_process([sys.executable, *probe[1:]], env=env, check=False)).returncode == 0

            await until(healthy)
            process.terminate()
            with anyio.fail_after(5):
                assert await process.wait() == 0
        finally:
            if process.returncode is None:
                process.kill()


def _health_check() -> list[str]:
    (found,) = re.findall(r"^ +CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)
    return json.loads(found)


def _python_for_all() -> str | None:
    """A Python of this version that an unprivileged user can run."""
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for python in (Path(os.path.realpath(sys.executable)), Path("/usr/bin") / name, Path("/usr/local/bin") / name):
        if python.exists() and all(parent.stat().st_mode & 0o001 for parent in python.resolve().parents):
            return str(python)
    return None
