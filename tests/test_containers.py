"""Checks of the container files that need no container engine."""

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


def test_the_compose_file_is_valid_by_the_schema_of_its_specification() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(ROOT / "docker-compose.yml")]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_three_services_fit_two_gigabytes_and_only_ours_is_public() -> None:
    assert set(SERVICES) == {"wadm-api", "wadm-mongodb", "wadm-redis"}
    assert sum(megabytes(service["mem_limit"]) for service in SERVICES.values()) <= 1_900
    assert SERVICES["wadm-api"]["ports"] == ["8920:8920"]
    assert SERVICES["wadm-mongodb"]["ports"] == ["127.0.0.1:27017:27017"]
    assert SERVICES["wadm-redis"]["ports"] == ["127.0.0.1:6379:6379"]
    assert re.fullmatch(r"mongo:7\.0\.\d+", SERVICES["wadm-mongodb"]["image"])
    assert re.fullmatch(r"redis:7\.\d+\.\d+-alpine", SERVICES["wadm-redis"]["image"])
    assert all(service["networks"] == ["wadm-network"] and service["restart"] and service["logging"] for service in SERVICES.values())


def test_our_service_starts_once_the_others_are_healthy() -> None:
    assert SERVICES["wadm-api"]["depends_on"] == {name: {"condition": "service_healthy"} for name in ("wadm-mongodb", "wadm-redis")}
    assert all("healthcheck" in SERVICES[name] for name in ("wadm-mongodb", "wadm-redis"))


def test_the_compose_file_contains_no_credential_and_requires_each_one() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    used = set(re.findall(r"\$\{([A-Z_]+)", text))
    assert used == {"API_KEY", "MONGODB_ROOT_PASSWORD", "MONGODB_USER", "MONGODB_PASSWORD", "REDIS_PASSWORD", "WADM_ALLOWED_HOSTS"}
    assert all(f"${{{name}:?" in text for name in used - {"WADM_ALLOWED_HOSTS"})


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


def test_every_variable_of_our_service_is_a_valid_setting() -> None:
    given = SERVICES["wadm-api"]["environment"]
    assert set(given) <= set(Settings.model_fields)
    filled = {name: re.sub(r"\$\{[^}]*\}", "x", str(value)) for name, value in given.items()}
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
