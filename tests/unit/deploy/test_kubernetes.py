"""The files in deploy/kubernetes: right by Kubernetes' own schemas, whole, agreeing with each other and with us."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from proxy.config.catalog import load_catalog
from proxy.config.settings import Settings, load_settings

REPO = Path(__file__).parents[3]
ROOT = REPO / "deploy/kubernetes"
OVERLAYS = ("gateway", "sidecar")
KUSTOMIZATIONS = [ROOT / "base", *(ROOT / "overlays" / name for name in OVERLAYS)]
VERSIONS = ("1.30", "1.33", "1.37")
# Kinds that Kubernetes does not bring along: nobody packages their schemas for Python.
CUSTOM = {"PodMonitor"}
MANIFESTS = sorted(
    path
    for path in ROOT.rglob("*.yaml")
    if path.name not in ("kustomization.yaml", "catalog.yaml") and not path.name.endswith(".patch.yaml")
)
_SELECTING = ("Deployment", "PodDisruptionBudget", "PodMonitor")
_STOP_OF_PARENT_S = 15
"""What a drain may take beyond its delay and its grace before the parent kills."""


@cache
def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text("utf-8"))


def kustomization(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = load(directory / "kustomization.yaml")
    return found


def objects(overlay: str) -> dict[str, dict[str, Any]]:
    """Kind → object, of the overlay's own files."""
    directory = ROOT / "overlays" / overlay
    files = [directory / name for name in kustomization(directory)["resources"] if name.endswith(".yaml")]
    return {load(file)["kind"]: load(file) for file in files}


def pod(overlay: str) -> dict[str, Any]:
    found: dict[str, Any] = objects(overlay)["Deployment"]["spec"]["template"]["spec"]
    return found


def container(overlay: str) -> dict[str, Any]:
    """Ours."""
    spec = pod(overlay)
    return next(each for each in spec.get("initContainers", []) + spec["containers"] if each["name"] == "sameflight")


def environment(overlay: str) -> dict[str, str]:
    """What the generated ConfigMap says: the base's settings and the overlay's."""
    env: dict[str, str] = {}
    for directory in (ROOT / "base", ROOT / "overlays" / overlay):
        for made in kustomization(directory).get("configMapGenerator", []):
            if made["name"] == "sameflight-settings":
                env |= dict(each.split("=", 1) for each in made["literals"])
    return env


def settings(overlay: str, secrets: Path) -> Settings:
    """As the process would read them, with files in place of the mounted secrets."""
    values = {"database-url": "postgresql://u:p@postgres/sameflight", "cache-url": "valkey://:p@valkey:6379/0"}
    env = environment(overlay)
    for name, value in env.items():
        if name.endswith("_FILE"):
            key = Path(value).name
            (secrets / key).write_text(values.get(key, "0123456789abcdef" * 4), "utf-8")
            env[name] = str(secrets / key)
    loaded = load_settings(env)
    assert loaded.warnings == ()
    return loaded.settings


# -- schemas and style -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_manifest_is_right_by_the_schema_of_old_and_new_kubernetes(path: Path) -> None:
    """Strictly: a field that does not exist is an error."""
    validator = pytest.importorskip("kubernetes_validate")
    document = load(path)
    if document["kind"] in CUSTOM:
        pytest.skip(f"{document['kind']} is no kind of Kubernetes' own")
    for version in VERSIONS:
        validator.validate(document, version, strict=True)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_kustomize_makes_is_right_by_the_schema_as_well(overlay: str) -> None:
    """Names of generated ConfigMaps arrive where they are used, and everything is in the overlay's namespace."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not installed")
    validator = pytest.importorskip("kubernetes_validate")
    made = subprocess.run(
        [kubectl, "kustomize", str(ROOT / "overlays" / overlay)],
        capture_output=True, text=True, timeout=60, check=False, env={"PATH": os.environ["PATH"], "HOME": "/tmp"},
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    assert made.stderr == ""
    documents = list(yaml.safe_load_all(made.stdout))
    namespace = kustomization(ROOT / "overlays" / overlay)["namespace"]
    for document in documents:
        where = document["metadata"]["name" if document["kind"] == "Namespace" else "namespace"]
        assert where == namespace
        if document["kind"] not in CUSTOM:
            validator.validate(document, VERSIONS[-1], strict=True)
    maps = {each["metadata"]["name"] for each in documents if each["kind"] == "ConfigMap"}
    text = next(made_of for made_of in made.stdout.split("\n---\n") if "kind: Deployment" in made_of)
    used = set(re.findall(r"configMap(?:Ref)?:\n\s+name: (\S+)", text))
    assert used == maps
    accounts = {each["metadata"]["name"] for each in documents if each["kind"] == "ServiceAccount"}
    assert {yaml.safe_load(text)["spec"]["template"]["spec"]["serviceAccountName"]} == accounts


@pytest.mark.long
def test_checkov_finds_nothing_that_is_not_explained() -> None:
    """Kubernetes and the Dockerfile; a waiver is an annotation with its reason."""
    checkov = shutil.which("checkov", path=str(REPO / ".venv-checks/bin"))
    if checkov is None:
        pytest.skip("checkov is not installed in .venv-checks")
    ended = subprocess.run(
        [checkov, "--framework", "kubernetes", "dockerfile", "--compact", "--quiet", "--skip-download",
         "-d", str(REPO / "deploy")],
        capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert re.findall(r"Failed checks: (\d+)", ended.stdout) == ["0", "0"]
    waivers = [
        value.partition("=")
        for path in MANIFESTS
        for key, value in load(path)["metadata"].get("annotations", {}).items()
        if key.startswith("checkov.io/skip")
    ]
    assert sum(map(int, re.findall(r"Skipped checks: (\d+)", ended.stdout))) == len(waivers)
    assert all(len(reason) > 30 for _, _, reason in waivers)


# -- kustomize ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("directory", KUSTOMIZATIONS, ids=lambda path: path.name)
def test_everything_that_a_kustomization_names_exists(directory: Path) -> None:
    """Resources, files of generated ConfigMaps, patches and what they patch; and no manifest is forgotten."""
    about = kustomization(directory)
    for name in about["resources"]:
        assert (directory / name).exists(), name
    for made in about.get("configMapGenerator", []):
        assert all((directory / name).is_file() for name in made.get("files", []))
    bases = [directory / name for name in about["resources"] if not name.endswith(".yaml")]
    below = [base / name for base in bases for name in kustomization(base)["resources"]]
    own = [directory / name for name in about["resources"] if name.endswith(".yaml")]
    known = {(load(file)["kind"], load(file)["metadata"]["name"]) for file in (*own, *below)}
    for patch in about.get("patches", []):
        assert (directory / patch["path"]).is_file()
        assert (patch["target"]["kind"], patch["target"]["name"]) in known
    merged = {made["name"] for made in about.get("configMapGenerator", []) if made.get("behavior") == "merge"}
    assert merged <= {made["name"] for base in bases for made in kustomization(base)["configMapGenerator"]}
    assert {path for path in MANIFESTS if path.parent == directory} - {directory / "secret.example.yaml"} == set(own)


def test_the_catalog_of_the_base_is_a_good_one(tmp_path: Path) -> None:
    """With a file where the Secret would be."""
    (tmp_path / "openai").write_text("sk-test", "utf-8")
    text = (ROOT / "base/catalog.yaml").read_text("utf-8")
    file = tmp_path / "catalog.yaml"
    file.write_text(text.replace("/etc/sameflight/keys/", f"{tmp_path}/"), "utf-8")
    catalog = load_catalog(file, {}, Settings())

    assert [key.value for key in catalog.providers["openai"].keys] == ["sk-test"]


# -- what the files agree on -------------------------------------------------------------------------------------


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_pod_has_the_rights_it_needs_and_no_other(overlay: str) -> None:
    """No root, nothing to write to but what is mounted, no token, no capability, bounds for everything."""
    spec = pod(overlay)

    assert spec["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] == 65532
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for each in spec.get("initContainers", []) + spec["containers"]:
        assert each["securityContext"]["readOnlyRootFilesystem"] is True
        assert each["securityContext"]["allowPrivilegeEscalation"] is False
        assert each["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert {"cpu", "memory"} <= set(each["resources"]["limits"]) & set(each["resources"]["requests"])
        assert not any("subPath" in mount for mount in each["volumeMounts"]), "would never be reloaded"
        mounted = {mount["name"] for mount in each["volumeMounts"]}
        assert mounted <= {volume["name"] for volume in spec["volumes"]}
    assert all("sizeLimit" in volume["emptyDir"] for volume in spec["volumes"] if "emptyDir" in volume)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_settings_of_a_pod_are_possible_and_fit_what_is_mounted(overlay: str, tmp_path: Path) -> None:
    """Paths lie in mounts, ports are those of the container, the spool fits its volume."""
    found, ours = settings(overlay, tmp_path), container(overlay)
    mounts = [mount["mountPath"] for mount in ours["volumeMounts"]]
    paths = [value for value in environment(overlay).values() if value.startswith("/")]
    assert all(any(path == mount or path.startswith(mount + "/") for mount in mounts) for path in paths)
    ports = {port["name"]: port["containerPort"] for port in ours["ports"]}
    assert ports["admin"] == found.admin_port
    assert ports.get("http", found.port) == found.port
    assert found.admin_host == "0.0.0.0"
    limit = next(volume for volume in pod(overlay)["volumes"] if volume["name"].endswith("state"))
    number, unit = re.fullmatch(r"(\d+)([MG])i", limit["emptyDir"]["sizeLimit"]).groups()  # type: ignore[union-attr]
    assert found.spool_bytes < int(number) << {"M": 20, "G": 30}[unit]


def test_probes_ask_the_pages_that_are_meant_for_them() -> None:
    """On the admin port, at the pod's address."""
    for overlay in OVERLAYS:
        ours = container(overlay)
        asked = {probe: ours[probe]["httpGet"] for probe in ("startupProbe", "readinessProbe", "livenessProbe")}
        assert {get["port"] for get in asked.values()} == {"admin"}
        assert [get["path"] for get in asked.values()] == ["/startupz", "/readyz", "/livez"]
        assert all("host" not in get for get in asked.values()), "would be the node"


def test_the_gateway_gets_the_time_its_drain_takes(tmp_path: Path) -> None:
    """And the delay is longer than the endpoints need to learn that it is unready."""
    found, spec = settings("gateway", tmp_path), pod("gateway")
    drain_s = found.drain_delay_s + found.drain_grace_s

    assert spec["terminationGracePeriodSeconds"] > drain_s + _STOP_OF_PARENT_S
    assert found.drain_delay_s >= 5
    assert found.host == "0.0.0.0"
    assert found.auth == "required"


def test_what_the_gateway_is_found_by_is_what_its_pods_carry() -> None:
    """Selectors of Service, budget, policy, monitor, spread and Deployment; the autoscaler's target and metrics."""
    made = objects("gateway")
    labels = made["Deployment"]["spec"]["template"]["metadata"]["labels"].items()
    spread = [each["labelSelector"] for each in pod("gateway")["topologySpreadConstraints"]]
    selectors = [
        made["Service"]["spec"]["selector"],
        made["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
        *(made[kind]["spec"]["selector"]["matchLabels"] for kind in _SELECTING),
        *(each["matchLabels"] for each in spread),
    ]
    assert all(selector.items() <= labels for selector in selectors)
    scaler = made["HorizontalPodAutoscaler"]["spec"]
    assert scaler["scaleTargetRef"]["name"] == made["Deployment"]["metadata"]["name"]
    assert scaler["metrics"][0]["containerResource"]["container"] == "sameflight"
    assert scaler["minReplicas"] == int(environment("gateway")["SAMEFLIGHT_LIMIT_WORKERS"])
    rules = load(REPO / "deploy/prometheus/adapter.yaml")["rules"]["custom"]
    assert scaler["metrics"][1]["pods"]["metric"]["name"] in {rule["name"]["as"] for rule in rules}
    ports = {port["name"] for port in container("gateway")["ports"]}
    assert made["Service"]["spec"]["ports"][0]["targetPort"] in ports
    assert {rule["ports"][0]["port"] for rule in made["NetworkPolicy"]["spec"]["ingress"]} <= ports
    assert made["PodMonitor"]["spec"]["podMetricsEndpoints"][0]["port"] in ports


def test_the_secret_holds_every_file_that_is_named() -> None:
    """In the example, and in the command that makes one."""
    example = set(load(ROOT / "overlays/gateway/secret.example.yaml")["stringData"])
    named = {Path(value).name for name, value in environment("gateway").items() if name.endswith("_FILE")}
    catalog = load(ROOT / "base/catalog.yaml")
    named |= {Path(provider["api_key_file"]).name for provider in catalog["providers"].values()}
    command = (ROOT / "overlays/gateway/kustomization.yaml").read_text("utf-8")

    assert named == example == set(re.findall(r"--from-literal=([\w-]+)=", command))


def test_the_sidecar_is_one_that_outlives_its_application(tmp_path: Path) -> None:
    """A native sidecar, ready before the application, on the pod's loopback, gone soon after it."""
    ours, found = container("sidecar"), settings("sidecar", tmp_path)
    assert ours in pod("sidecar")["initContainers"]
    assert ours["restartPolicy"] == "Always"
    assert "startupProbe" in ours
    assert found.host == "127.0.0.1"
    assert [port["name"] for port in ours["ports"]] == ["admin"]
    assert found.drain_delay_s == 0
    assert pod("sidecar")["terminationGracePeriodSeconds"] > found.drain_grace_s + _STOP_OF_PARENT_S
    application = pod("sidecar")["containers"][0]
    env = {each["name"]: each["value"] for each in application["env"]}
    assert env["OPENAI_BASE_URL"] == f"http://127.0.0.1:{found.port}/v1"
    assert env["OPENAI_API_KEY"] in found.placeholder_keys
    monitor = objects("sidecar")["PodMonitor"]["spec"]
    labels = objects("sidecar")["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert monitor["selector"]["matchLabels"].items() <= labels.items()
    policy = objects("sidecar")["NetworkPolicy"]["spec"]
    assert policy["podSelector"]["matchLabels"].items() <= labels.items()
    assert policy["ingress"][0]["ports"][0]["port"] == found.admin_port
