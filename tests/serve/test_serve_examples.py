"""The compose file and the container of the server, as far as they can be judged without Docker."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml
from click import Context

from pocketclip.cli.main import build
from pocketclip.serve.settings_checks import parse_address

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "serve"
VARIABLES = {"IMMICH_VERSION", "UPLOAD_LOCATION", "DB_DATA_LOCATION", "DB_PASSWORD", "DB_USERNAME",
             "DB_DATABASE_NAME"}  # fmt: skip


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text())
    return loaded


def parse_command(words: list[str]) -> dict[str, Any]:
    """Return the options of a command line of pocketclip, which must be a valid one."""
    group = typer.main.get_command(build())
    command = group.get_command(Context(group), words[0])  # type: ignore[attr-defined]
    assert command is not None, words
    options: dict[str, Any] = command.make_context(words[0], words[1:]).params
    return options


def test_services_and_networks(compose: dict[str, Any]) -> None:
    services = compose["services"]
    assert set(services) == {
        "immich-server", "immich-machine-learning", "redis", "database", "pocketclip",
        "pocketclip-pull",
    }  # fmt: skip
    assert compose["networks"] == {"machine-learning": {"internal": True}}
    networks = {name: one.get("networks", ["default"]) for name, one in services.items()}
    assert networks["pocketclip"] == ["machine-learning"]
    assert networks["redis"] == networks["database"] == networks["pocketclip-pull"] == ["default"]
    for name in ("immich-server", "immich-machine-learning"):
        assert sorted(networks[name]) == ["default", "machine-learning"]
    assert [name for name, one in services.items() if "ports" in one] == ["immich-server"]
    volumes = {v.split(":")[0] for one in services.values() for v in one.get("volumes", [])}
    named = {volume for volume in volumes if not volume.startswith(("/", "$"))}
    assert named == set(compose["volumes"])
    for one in services.values():
        assert set(one.get("depends_on", [])) <= set(services)


def test_the_commands_are_valid_and_fit_together(compose: dict[str, Any]) -> None:
    services = compose["services"]
    options = parse_command(services["pocketclip"]["command"])
    host, port = parse_address(options["immich"], "--immich")
    assert host == "0.0.0.0"
    assert options["offline"]
    (name,) = options["allow_host"]
    url = services["immich-server"]["environment"]["IMMICH_MACHINE_LEARNING_URL"]
    assert url == f"http://{name}:{port}"
    assert name in services
    assert options["upstream"] == "http://immich-machine-learning:3003"
    assert parse_command(services["pocketclip-pull"]["command"])["model"] == options["model"]
    assert services["pocketclip-pull"]["profiles"] == ["setup"]
    (script,) = services["pocketclip"]["healthcheck"]["test"][3:]
    compile(script, "healthcheck", "exec")
    assert f"'127.0.0.1', {port}," in script
    assert "'/ping'" in script


def test_pocketclip_is_locked_in(compose: dict[str, Any]) -> None:
    service = compose["services"]["pocketclip"]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert int(service["stop_grace_period"].rstrip("s")) > 30  # Limits.drain
    assert (FOLDER / service["build"]["context"]).resolve() == ROOT
    assert (ROOT / service["build"]["dockerfile"]).is_file()


def test_variables_are_those_of_immich() -> None:
    text = (FOLDER / "compose.yaml").read_text()
    assert set(re.findall(r"\$\{(\w+)", text)) == VARIABLES
    head = text[: text.index("name: immich")]
    assert all(name in head for name in VARIABLES)


def test_dockerfile() -> None:
    text = (FOLDER / "Dockerfile").read_text()
    joined = re.sub(r"\\\n", "", re.sub(r"(?m)^#.*\n", "", text))
    final = joined[joined.rindex("FROM ") :]
    (user,) = re.findall(r"(?m)^USER (\w+)$", final)
    assert re.search(rf"(?m)^RUN useradd --uid \d+ .*{user}", final)
    command = json.loads(re.findall(r"(?m)^HEALTHCHECK .* CMD (.*)$", final)[0])
    assert command[:2] == ["python", "-c"]
    compile(command[2], "healthcheck", "exec")
    assert "'/readyz'" in command[2]
    for sources in re.findall(r"(?m)^COPY ((?:[\w.]+ )+)[\w./]+$", joined):
        assert all((ROOT / source).exists() for source in sources.split())
    shown = re.sub(r"\\\n# +", "", text)
    commands = re.findall(r"(?m)^# +docker run .* pocketclip-serve ((?:pull|serve) .*)$", shown)
    assert [parse_command(shlex.split(one))["model"] for one in commands] == ["mobileclip2-s0"] * 2
