"""The compose file, without an engine: it refuses to start without secrets, and opens nothing but loopback.

No package of PyPI carries the schema of Compose any more, so the keys that are used are listed here.
"""

import re
from importlib.metadata import PackageNotFoundError, distribution

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from dataworth.lifecycle.permissions import ADDRESSES, INPUTS, PROBLEMS, RESULTS
from tests.harness.compose import CODE, INFRA, image_environment, interpolated, secret_names, services

LIMITS = (INPUTS, RESULTS, PROBLEMS, ADDRESSES)
GIVEN = dict.fromkeys(secret_names(), "given")
TEXT = (INFRA / "compose.yaml").read_text()
KEYS = {
    *("image", "build", "init", "restart", "read_only", "tmpfs", "cap_drop", "security_opt", "command", "expose"),
    *("environment", "ports", "volumes", "networks", "depends_on", "healthcheck", "user", "shm_size"),
}
each_service = pytest.mark.parametrize("name", services(GIVEN))


@pytest.mark.parametrize("name", secret_names())
def test_nothing_starts_without_a_secret(name):
    for given in ({**GIVEN, name: ""}, {key: value for key, value in GIVEN.items() if key != name}):
        with pytest.raises(KeyError, match=f"{name}: see infra/secrets.example"):
            interpolated(TEXT, given)


def test_the_secrets_are_all_there_is_to_give():
    required = set(re.findall(r"\$\{(\w+):\?", TEXT))
    assert required == set(secret_names())
    assert all(re.search(r"\$\{\w+:[?-]", use) for use in re.findall(r"\$\{[^}]*\}", TEXT))
    assert "/infra/.env\n" in (CODE / ".gitignore").read_text()


@each_service
def test_a_secret_is_never_written_down(name):
    for key, value in services(GIVEN)[name].get("environment", {}).items():
        if re.search(r"PASSWORD|SECRET|AUTH_STRING|CONNECTION", key):
            assert "given" in value


@each_service
def test_a_service_is_locked_down_and_known(name):
    service = services(GIVEN)[name]
    assert set(service) <= KEYS
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service.get("user") == "999:999" if name == "postgres" else service["read_only"]
    assert ("healthcheck" in service) == (name != "deployments")
    for other, how in service.get("depends_on", {}).items():
        assert how == {"condition": "service_healthy"}
        assert "healthcheck" in services(GIVEN)[other]


def test_only_loopback_is_published_unless_asked():
    published = [port for service in services(GIVEN).values() for port in service.get("ports", [])]
    assert [port.rpartition(":")[2] for port in published] == ["4200", "5000", "8787"]
    assert all(port.startswith("127.0.0.1:") for port in published)
    asked = services({**GIVEN, "PUBLISH_ADDRESS": "192.0.2.1"})
    assert asked["prefect-server"]["ports"] == ["192.0.2.1:4200:4200"]
    assert asked["dask-scheduler"]["ports"] == ["127.0.0.1:8787:8787"]
    assert asked["postgres"]["networks"] == ["database"]
    assert yaml.safe_load(interpolated(TEXT, GIVEN))["networks"]["database"] == {"internal": True}


def test_volumes_and_services_that_are_named_are_there():
    whole = yaml.safe_load(interpolated(TEXT, GIVEN))
    named = [volume.split(":")[0] for service in whole["services"].values() for volume in service.get("volumes", [])]
    assert {name for name in named if not name.startswith(".")} == set(whole["volumes"])
    assert all((INFRA / name).is_file() for name in named if name.startswith("./kubernetes"))
    over = yaml.safe_load((INFRA / "compose.gpu.yaml").read_text().replace("${", "$"))
    assert set(over["services"]) <= set(whole["services"])
    assert over["services"]["prefect-worker"]["build"]["args"] == {"VARIANT": "cuda"}


def test_what_a_run_may_name_is_said_and_is_apart_from_the_folder_that_is_mounted():
    worker = services({**GIVEN, "INPUTS_FOLDER": "/home/inputs", "MORE_INPUTS": "s3://bucket/in"})["prefect-worker"]
    assert "/home/inputs:/inputs:ro" in worker["volumes"]
    limits = {name: value for name, value in worker["environment"].items() if name in LIMITS}
    assert limits == {
        INPUTS: "/inputs;s3://bucket/in",
        RESULTS: "/data/results;/data/store;",
        PROBLEMS: "",
        ADDRESSES: "",
    }


def test_the_image_runs_as_nobody_and_sends_nothing_home():
    text = (INFRA / "Containerfile").read_text()
    assert re.search(r"^USER 10001:10001$", text, re.MULTILINE)
    assert not re.search(r"PASSWORD|SECRET|TOKEN", text)
    environment = image_environment()
    assert environment["DO_NOT_TRACK"] == environment["MLFLOW_DISABLE_TELEMETRY"] == "true"
    copied = {word for line in re.findall(r"^COPY (?!--from)(.*)$", text, re.MULTILINE) for word in line.split()[:-1]}
    allowed = set(re.findall(r"^!(.*)$", (INFRA / "Containerfile.dockerignore").read_text(), re.MULTILINE))
    assert copied == allowed
    assert all((CODE / name).exists() for name in copied)


def test_all_that_the_image_installs_is_pinned():
    locks = (INFRA / "requirements.lock").read_text() + (INFRA / "image.lock").read_text()
    pinned = dict(re.findall(r"^([\w.-]+)==([\w.]+)$", locks, re.MULTILINE))
    pinned = {canonicalize_name(name): version for name, version in pinned.items()}
    waiting = {("dataworth", extra) for extra in ("", "adapters", "objects", "search", "servers")}
    seen: set[tuple[str, str]] = set()
    while waiting:
        name, extra = item = waiting.pop()
        seen.add(item)
        try:
            requires = distribution(name).requires or []
        except PackageNotFoundError:
            continue
        for requirement in map(Requirement, requires):
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                child = canonicalize_name(requirement.name)
                assert child in pinned, f"{child}, which {name} asks for, is in neither lock"
                waiting |= {(child, given) for given in ("", *requirement.extras)} - seen
