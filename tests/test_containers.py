"""What can be known of the containers without an engine to run them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any, cast

import anyio
import pytest
from ruamel.yaml import YAML

from tests.end_to_end.process import environment, free_port, until
from wadm_mcp.settings import Settings, read_settings

ROOT = Path(__file__).parents[1]
COMPOSE: dict[str, Any] = cast(dict[str, Any], YAML(typ="safe").load((ROOT / "docker-compose.yml").read_text()))
DOCKERFILE = (ROOT / "Dockerfile").read_text()
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]


def megabytes(text: str) -> int:
    assert text.endswith("m")
    return int(text[:-1])


def test_the_compose_file_is_lawful_by_the_specifications_own_schema() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(ROOT / "docker-compose.yml")]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_three_services_fit_two_gigabytes_and_only_ours_is_public() -> None:
    assert set(SERVICES) == {"wadm-api", "wadm-mongodb", "wadm-redis"}
    assert sum(megabytes(service["mem_limit"]) for service in SERVICES.values()) <= 1_900
    assert SERVICES["wadm-api"]["ports"] == ["8920:8920"]
    assert SERVICES["wadm-mongodb"]["ports"] == ["127.0.0.1:27017:27017"]
    assert SERVICES["wadm-redis"]["ports"] == ["127.0.0.1:6379:6379"]
    assert SERVICES["wadm-mongodb"]["image"].startswith("mongo:7")
    assert SERVICES["wadm-redis"]["image"].startswith("redis:7")
    assert all(service["networks"] == ["wadm-network"] and service["restart"] and service["logging"] for service in SERVICES.values())


def test_ours_starts_once_the_others_are_healthy() -> None:
    assert SERVICES["wadm-api"]["depends_on"] == {name: {"condition": "service_healthy"} for name in ("wadm-mongodb", "wadm-redis")}
    assert all("healthcheck" in SERVICES[name] for name in ("wadm-mongodb", "wadm-redis"))


def test_no_credential_stands_in_the_file_and_each_one_must_be_set() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    used = set(re.findall(r"\$\{([A-Z_]+)", text))
    assert used == {"API_KEY", "MONGODB_USER", "MONGODB_PASSWORD", "REDIS_PASSWORD", "WADM_ALLOWED_HOSTS"}
    assert all(f"${{{name}:?" in text for name in used - {"WADM_ALLOWED_HOSTS"})


def test_every_variable_given_to_ours_is_a_setting_that_can_be_used() -> None:
    given = SERVICES["wadm-api"]["environment"]
    assert set(given) <= set(Settings.model_fields)
    filled = {name: re.sub(r"\$\{[^}]*\}", "x", str(value)) for name, value in given.items()}
    settings = read_settings(filled)
    assert settings.WADM_PORT == 8920
    assert not settings.binds_loopback


def test_the_image_is_slim_pinned_unprivileged_and_leaves_the_build_tools_behind() -> None:
    stages = re.findall(r"^FROM (\S+)(?: AS (\S+))?$", DOCKERFILE, re.MULTILINE)
    assert [name for _, name in stages] == ["build", ""]
    assert all(re.fullmatch(r"python:3\.11-slim-\w+", image) for image, _ in stages)
    final = DOCKERFILE.rsplit("FROM ", 1)[1]
    assert "USER wadm" in final
    assert "pip" not in final
    assert SERVICES["wadm-api"]["read_only"] is True


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
