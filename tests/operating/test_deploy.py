"""What is deployed can be read, agrees with the settings, and says the same in every file."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.api.conftest import Served
from tillroll.server.settings import FILE, PREFIX, Settings, load

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
UNIT = DEPLOY / "tillroll.service"
PAGE = ROOT / "docs" / "operating" / "deploy.md"
VARIABLES = {PREFIX + name.upper() for name in Settings.__struct_fields__} | {FILE}


def texts() -> dict[str, str]:
    files = [file for file in DEPLOY.rglob("*") if file.is_file()]
    return {str(file.relative_to(ROOT)): file.read_text("utf-8") for file in (*files, PAGE)}


def manifests() -> Iterator[tuple[str, dict[str, Any]]]:
    for file in sorted(KUBERNETES.glob("*.yaml")):
        for document in yaml.safe_load_all(file.read_text("utf-8")):
            yield file.name, document


def manifest(kind: str, name: str = "tillroll") -> dict[str, Any]:
    [found] = [
        document
        for _, document in manifests()
        if (document["kind"], document["metadata"]["name"]) == (kind, name)
    ]
    return found


def instructions() -> list[tuple[str, str]]:
    """Return what a Containerfile says, line by line, with lines that go on put together."""
    text = re.sub(r"(?m)^#.*\n", "", (DEPLOY / "Containerfile").read_text("utf-8"))
    joined = re.sub(r"\\\n\s*", "", text)
    return [tuple(line.split(" ", 1)) for line in joined.splitlines() if line]  # type: ignore[misc]


def settings_of(pairs: dict[str, Any]) -> Settings:
    return load(environ={name: str(value) for name, value in pairs.items()})


def test_every_variable_that_is_named_is_a_setting():
    named = {
        (name, variable)
        for name, text in texts().items()
        for variable in re.findall(r"\bTILLROLL_[A-Z_]+\b", text)
    }
    assert {variable for _, variable in named} <= VARIABLES, named
    assert ("deploy/kubernetes/configmap.yaml", "TILLROLL_HOST") in named


def test_nothing_names_a_registry():
    for name, text in texts().items():
        images = re.findall(r"(?m)(?:image:|ARG BASE=) *(\S+)$", text)
        assert not [image for image in images if "/" in image], name


# ---------------------------------------------------------------- Kubernetes


def test_manifests_belong_together():
    deployment = manifest("Deployment")["spec"]
    pod = deployment["template"]
    labels = pod["metadata"]["labels"]
    chosen = deployment["selector"]["matchLabels"]
    assert chosen.items() <= labels.items()
    service = manifest("Service")["spec"]
    assert service["selector"] == chosen
    assert manifest("PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == chosen
    assert not chosen.items() <= manifest("Job", "tillroll-migrate")["metadata"]["labels"].items()
    [container] = pod["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    settings = settings_of(manifest("ConfigMap")["data"])
    assert ports == {"http": settings.port}
    assert {port["targetPort"] for port in service["ports"]} == {"http"}
    assert pod["metadata"]["annotations"]["prometheus.io/port"] == str(settings.port)
    assert manifest("PodDisruptionBudget")["spec"]["minAvailable"] < deployment["replicas"]


def test_pods_ask_for_what_there_is():
    for kind, name in (("Deployment", "tillroll"), ("Job", "tillroll-migrate")):
        spec = manifest(kind, name)["spec"]["template"]["spec"]
        [container] = spec["containers"]
        for source in container["envFrom"]:
            [(reference, of)] = source.items()
            wanted = {"configMapRef": "ConfigMap", "secretRef": "Secret"}[reference]
            assert manifest(wanted, of["name"])
        mounted = {mount["name"] for mount in container.get("volumeMounts", [])}
        assert mounted == {volume["name"] for volume in spec.get("volumes", [])}


def test_pods_have_no_rights():
    for kind, name in (("Deployment", "tillroll"), ("Job", "tillroll-migrate")):
        spec = manifest(kind, name)["spec"]["template"]["spec"]
        assert spec["securityContext"]["runAsNonRoot"]
        assert spec["automountServiceAccountToken"] is False
        [container] = spec["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


def test_a_pod_has_the_time_that_a_stop_takes():
    spec = manifest("Deployment")["spec"]["template"]["spec"]
    [container] = spec["containers"]
    pause = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    settings = settings_of(manifest("ConfigMap")["data"])
    assert spec["terminationGracePeriodSeconds"] > pause + settings.shutdown_seconds
    probes = {name: container[name]["httpGet"]["path"] for name in container if "Probe" in name}
    assert probes == {
        "startupProbe": "/livez",
        "readinessProbe": "/readyz",
        "livenessProbe": "/livez",
    }


def test_the_page_lists_every_manifest():
    listed = set(re.findall(r"(?m)^\| `([\w.-]+\.yaml)` \|", PAGE.read_text("utf-8")))
    assert listed == {name for name, _ in manifests()}


# ---------------------------------------------------------------- the image and compose


def test_the_image_is_built_from_what_is_there():
    steps = instructions()
    copied = [
        source
        for word, rest in steps
        if word == "COPY" and not rest.startswith("--from")
        for source in rest.split()[:-1]
    ]
    assert copied
    assert not [source for source in copied if not (ROOT / source).exists()]
    for table in ("build.lock", "server.lock"):
        assert f"requirements/{table}" in copied


def test_the_image_runs_as_nobody_in_particular_and_serves():
    steps = dict(instructions())  # the last of each
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", steps["USER"])
    assert (steps["ENTRYPOINT"], steps["CMD"]) == ('["tillroll"]', '["serve"]')
    given = dict(pair.split("=", 1) for pair in steps["ENV"].split())
    settings = settings_of({name: v for name, v in given.items() if name.startswith(PREFIX)})
    assert str(settings.port) == steps["EXPOSE"]
    assert f":{settings.port}/readyz" in steps["HEALTHCHECK"]
    user = manifest("Deployment")["spec"]["template"]["spec"]["securityContext"]["runAsUser"]
    assert steps["USER"].split(":")[0] == str(user)


def test_the_lock_of_the_image_has_what_serves():
    lock = (ROOT / "requirements" / "server.lock").read_text("utf-8")
    names = set(re.findall(r"(?m)^([\w.-]+)(?:\[[\w,]+\])?==", lock))
    assert {"uvicorn", "psycopg", "mcp", "opentelemetry-sdk", "apsw"} <= names
    dev = (ROOT / "requirements" / "dev.lock").read_text("utf-8")
    pins = re.findall(r"(?m)^([\w.-]+(?:\[[\w,]+\])?==[^ ;]+)", lock)
    assert not [pin for pin in pins if pin not in dev]


def test_compose_starts_in_order():
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))
    services = compose["services"]
    assert (DEPLOY / services["tillroll"]["build"]["context"]).resolve() == ROOT
    assert (ROOT / services["tillroll"]["build"]["dockerfile"]).is_file()
    for service in services.values():
        for other, how in service.get("depends_on", {}).items():
            assert other in services
            if how["condition"] == "service_healthy":
                assert "healthcheck" in services[other]
    environment = services["tillroll"]["environment"]
    settings = settings_of(environment)
    assert settings.database_url.partition("@")[2].split("/")[0] in services
    assert int(services["tillroll"]["stop_grace_period"][:-1]) > settings.shutdown_seconds
    assert services["keys"]["profiles"]  # only when asked for


# ---------------------------------------------------------------- systemd


def unit() -> dict[str, list[str]]:
    """Return the directives of the unit, each with its values."""
    found: dict[str, list[str]] = {}
    for line in UNIT.read_text("utf-8").splitlines():
        if line and not line.startswith(("#", "[")):
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def test_the_unit_serves_and_stops_in_time():
    said = unit()
    assert said["ExecStart"] == ["/opt/tillroll/bin/tillroll serve"]
    given = dict(pair.split("=", 1) for pair in said["Environment"])
    settings = settings_of(given)
    assert settings.workers > 1  # so that a reload leaves nobody waiting
    assert int(said["TimeoutStopSec"][0]) > settings.shutdown_seconds
    for name in ("NoNewPrivileges", "PrivateTmp", "ProtectHome", "DynamicUser"):
        assert said[name] == ["yes"]


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
def test_systemd_takes_the_unit(tmp_path: Path):
    program = Path(sys.executable).with_name("tillroll")
    text = UNIT.read_text("utf-8").replace("/opt/tillroll/bin/tillroll", str(program))
    file = tmp_path / "tillroll.service"
    file.write_text(text, "utf-8")
    ended = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(file)],
        capture_output=True,
        text=True,
        check=False,
    )
    said = ended.stdout + ended.stderr
    assert ended.returncode == 0, said
    assert "tillroll.service" not in said, said


def test_a_hangup_stops_a_single_worker_in_order(serve, tmp_path: Path):
    served: Served = serve(f"sqlite:///{tmp_path}/one.db")
    assert served.stop(signal.SIGHUP) in (0, -signal.SIGTERM)
