"""Kubernetes' manifests: valid by its schemas, locked down, without secrets, and running what the compose file runs."""

import re
from collections.abc import Iterator

import kubernetes_validate
import pytest
import yaml

from tests.harness.compose import INFRA, secret_names, services

FOLDER = INFRA / "kubernetes"
# The oldest and the newest that the project says it runs on.
VERSIONS = ("1.29", "1.34")
OF_KUSTOMIZE = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
MANIFESTS = [
    manifest
    for name in OF_KUSTOMIZE["resources"]
    for manifest in yaml.safe_load_all((FOLDER / name).read_text())
    if manifest["kind"] != "DaskCluster"
]
(DASK,) = yaml.safe_load_all((FOLDER / "dask.yaml").read_text())
GIVEN = dict.fromkeys(secret_names(), "given")


def pods() -> Iterator[tuple[str, dict]]:
    """(name, pod's specification) of everything that runs."""
    for manifest in MANIFESTS:
        if manifest["kind"] in ("Deployment", "StatefulSet", "Job"):
            yield manifest["metadata"]["name"], manifest["spec"]["template"]["spec"]
    yield "dask-scheduler", DASK["spec"]["scheduler"]["spec"]
    yield "dask-worker", DASK["spec"]["worker"]["spec"]


PODS = dict(pods())
each_pod = pytest.mark.parametrize("name", PODS)


def environment(name: str) -> dict[str, dict]:
    return {entry["name"]: entry for entry in PODS[name]["containers"][0].get("env", [])}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda item: f"{item['kind']}-{item['metadata']['name']}")
def test_a_manifest_is_valid(manifest, version):
    assert kubernetes_validate.validate(manifest, version, strict=True) == version


def test_a_wrong_manifest_is_not():
    wrong = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "x"}, "spec": {"port": 1}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[0], strict=True)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_dask_cluster_is_of_valid_parts(version):
    """The operator's definition is of a pod's and a service's specification; only those have a schema at hand."""
    assert set(DASK["spec"]) == {"scheduler", "worker"}
    assert set(DASK["spec"]["scheduler"]) == {"spec", "service"}
    assert set(DASK["spec"]["worker"]) == {"replicas", "spec"}
    for name in ("dask-scheduler", "dask-worker"):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": PODS[name]}
        kubernetes_validate.validate(pod, version, strict=True)
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "x"},
        "spec": DASK["spec"]["scheduler"]["service"],
    }
    kubernetes_validate.validate(service, version, strict=True)
    assert service["spec"]["selector"]["dask.org/cluster-name"] == DASK["metadata"]["name"]


@each_pod
def test_a_pod_is_locked_down(name):
    pod = PODS[name]
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in pod["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["limits"].keys() >= {"cpu", "memory"}
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        claimed = {"data"} if name == "postgres" else set()
        assert mounted == {volume["name"] for volume in pod["volumes"]} | claimed


def test_secrets_are_named_and_nowhere_contained():
    assert all(manifest["kind"] != "Secret" for manifest in MANIFESTS)
    named = set()
    for name in PODS:
        for entry in environment(name).values():
            if "valueFrom" in entry:
                assert entry["valueFrom"]["secretKeyRef"]["name"] == "dataworth"
                named.add(entry["valueFrom"]["secretKeyRef"]["key"])
            elif re.search("PASSWORD|SECRET|AUTH_STRING|DATABASE_CONNECTION", entry["name"]):
                assert re.search(r"\$\(\w+_PASSWORD\)", entry["value"])
    assert named == set(secret_names())


@each_pod
def test_a_reference_within_the_environment_comes_after_what_it_names(name):
    seen = set()
    for key, entry in environment(name).items():
        assert set(re.findall(r"\$\((\w+)\)", entry.get("value", ""))) <= seen
        seen.add(key)


@each_pod
def test_a_pod_runs_what_the_compose_file_runs(name):
    """So what the system test has started is what runs here; a pool, a worker's name and sizes may differ."""
    composed = services(GIVEN)[name.removesuffix("-gpu")]
    words = PODS[name]["containers"][0]["args"]
    if name == "dask-worker":
        assert words[-2:] == ["--name", "$(DASK_WORKER_NAME)"]
        words = words[:-2]
    assert words == ["dataworth-gpu" if word == "dataworth" and "gpu" in name else word for word in composed["command"]]
    added = {"DASK_SCHEDULER_ADDRESS"} if name == "dask-worker" else set()
    assert set(composed.get("environment", {})) - added <= set(environment(name))


def test_every_pod_may_be_reached_by_those_alone_that_need_it():
    policies = {item["metadata"]["name"]: item["spec"] for item in MANIFESTS if item["kind"] == "NetworkPolicy"}
    assert policies["nothing"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for name, spec in policies.items():
        for rule in spec.get("ingress", []):
            assert rule["from"], name
            assert all(source for source in rule["from"]), name
    labels = {item["metadata"]["labels"]["app.kubernetes.io/name"] for item in MANIFESTS if item["kind"] in
              ("Deployment", "StatefulSet", "Job")}  # fmt: skip
    for spec in policies.values():
        for selector in [spec["podSelector"], *(s["podSelector"] for r in spec.get("ingress", []) for s in r["from"]
                         if "podSelector" in s)]:  # fmt: skip
            for expression in selector.get("matchExpressions", []):
                assert set(expression["values"]) <= labels


def test_one_pool_has_a_gpu():
    (name,) = [name for name, pod in PODS.items() if "nvidia.com/gpu" in pod["containers"][0]["resources"]["limits"]]
    pod = PODS[name]
    assert name == "prefect-worker-gpu"
    assert pod["nodeSelector"] == {"nvidia.com/gpu.present": "true"}
    assert pod["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert pod["containers"][0]["image"] == "dataworth-cuda"


def test_kustomize_names_what_is_there():
    files = {path.name for path in FOLDER.iterdir()}
    assert {*OF_KUSTOMIZE["resources"], "kustomization.yaml", "create-databases.sh"} == files
    own = {pod["containers"][0]["image"] for pod in PODS.values()} - {services(GIVEN)["postgres"]["image"]}
    assert own == {image["name"] for image in OF_KUSTOMIZE["images"]}
