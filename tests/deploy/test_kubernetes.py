"""The rendered overlays and components are valid, consistent, and match the service."""

import functools
import importlib
import json
import os
import re
import runpy
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]  # it has no types
import pytest
import yaml
from conftest import ROOT
from test_containers import CLOSING, OURS, instruction, settings, tool

from service.server.app import create_app
from service.serving.metrics.metrics import Metrics
from service.settings import Settings

HERE = ROOT / "deploy/kubernetes"
KINDS = {  # by kind: the class that defines the resource, from PyPI
    "ServiceMonitor": "cloudcoil.models.prometheus_operator.v1",
    "PrometheusRule": "cloudcoil.models.prometheus_operator.v1",
    "ScaledObject": "cloudcoil.models.keda.v1alpha1",
}
VARIANTS = [
    (overlay, (*components,))
    for overlay in ("cpu", "gpu")
    for components in ([], ["hpa"], ["keda", "monitoring", "fetch"])
]
EVERYTHING = [("cpu", ("hpa", "monitoring", "fetch")), ("gpu", ("keda", "monitoring", "fetch"))]

Resource = dict[str, Any]
Variant = tuple[str, tuple[str, ...]]


class Rendered(list[Resource]):
    """Resources that are applied together."""

    def all(self, kind: str) -> list[Resource]:
        """Return those of a kind."""
        return [one for one in self if one["kind"] == kind]

    def one(self, kind: str) -> Any:
        """Return the only one of a kind."""
        (found,) = self.all(kind)
        return found

    @property
    def pod(self) -> Any:
        """The Deployment's pod."""
        return self.one("Deployment")["spec"]["template"]["spec"]

    @property
    def container(self) -> Any:
        """The container that serves."""
        (found,) = self.pod["containers"]
        return found

    @property
    def containers(self) -> list[Any]:
        """The pod's containers, in the order in which they start."""
        return [*self.pod.get("initContainers", []), *self.pod["containers"]]

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables that the serving container adds to its image's."""
        own = {one["name"]: one["value"] for one in self.container.get("env", [])}
        return {**self.one("ConfigMap")["data"], **own}


def kustomize(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603 - our own files
        [tool("kubectl"), "kustomize", folder],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def overlay_with(folder: Path, overlay: str, components: Sequence[str]) -> Path:
    """Write an overlay with components; kustomize accepts relative paths only."""
    there = os.path.relpath(HERE.resolve(), folder.resolve())
    content = {
        "resources": [f"{there}/overlays/{overlay}"],
        "components": [f"{there}/components/{name}" for name in components],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(content), "utf-8")
    return folder


@pytest.fixture(scope="session")
def render(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A function that renders a variant, once."""

    @functools.cache
    def rendered(variant: Variant) -> Rendered:
        done = kustomize(overlay_with(tmp_path_factory.mktemp("overlay"), *variant))
        assert done.returncode == 0, done.stderr
        return Rendered(yaml.safe_load_all(done.stdout))

    return rendered


@pytest.fixture(params=VARIANTS, ids=lambda variant: "-".join((variant[0], *variant[1])))
def resources(request: pytest.FixtureRequest, render: Any) -> Rendered:
    """The resources of an overlay and some components."""
    rendered: Rendered = render(request.param)
    return rendered


@pytest.fixture(params=EVERYTHING, ids=lambda variant: variant[0])
def everything(request: pytest.FixtureRequest, render: Any) -> Rendered:
    """The resources of an overlay and all compatible components, without config maps."""
    rendered: Rendered = render(request.param)
    return Rendered(
        one for one in rendered if "grafana_dashboard" not in one["metadata"].get("labels", {})
    )


@pytest.fixture(scope="session")
def inference() -> Any:
    """KServe's InferenceService."""
    return yaml.safe_load((HERE / "kserve/inferenceservice.yaml").read_text("utf-8"))


def validate(resource: Resource, version: str) -> None:
    kubernetes_validate.validate(resource, version, strict=True)


# 1.30 is the oldest version that has all fields used here beyond alpha.
@pytest.mark.parametrize("version", ["1.30", kubernetes_validate.latest_version()])
def test_every_field_is_valid_in_kubernetes(resources: Rendered, version: str) -> None:
    for resource in resources:
        if resource["kind"] not in KINDS:
            validate(resource, version)


def test_every_field_is_valid_for_operators(everything: Rendered) -> None:
    custom = [one for one in everything if one["kind"] in KINDS]
    for resource in custom:
        module = importlib.import_module(KINDS[resource["kind"]])
        understood = getattr(module, resource["kind"]).model_validate(resource)
        again = understood.model_dump(by_alias=True, exclude_unset=True, mode="json")
        assert again == resource  # unknown fields are dropped
    assert {one["kind"] for one in custom} >= {"ServiceMonitor", "PrometheusRule"}


def test_an_unknown_field_is_detected(render: Any) -> None:
    deployment = json.loads(json.dumps(render(("cpu", ())).one("Deployment")))
    deployment["spec"]["template"]["spec"]["containers"][0]["readinesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        validate(deployment, kubernetes_validate.latest_version())


def test_probes_use_routes_of_the_service(resources: Rendered, inference: Any) -> None:
    paths = create_app(Settings()).openapi()["paths"]
    (predictor,) = inference["spec"]["predictor"]["containers"]
    for container in (resources.container, predictor):
        asked = {
            probe: container[f"{probe}Probe"]["httpGet"]["path"]
            for probe in ("startup", "readiness", "liveness")
        }
        assert asked == {"startup": "/startupz", "readiness": "/readyz", "liveness": "/livez"}
        assert paths.keys() >= set(asked.values())


def test_ports_match_the_service(everything: Rendered, inference: Any) -> None:
    chosen = settings(everything.environment)
    listening = {"http": chosen.port, "grpc": chosen.grpc_port}
    ports = everything.container["ports"]
    assert {port["name"]: port["containerPort"] for port in ports} == listening
    http, grpc = everything.one("Service")["spec"]["ports"]
    assert (http["name"], http["targetPort"]) == ("http", "http")
    assert (grpc["name"], grpc["port"], grpc["targetPort"]) == ("grpc", chosen.grpc_port, "grpc")
    assert grpc["appProtocol"] == "kubernetes.io/h2c"  # a gateway cannot guess it, unlike HTTP/1.1
    (entry,) = everything.one("NetworkPolicy")["spec"]["ingress"]
    assert entry["ports"] == [{"port": name} for name in listening]
    (endpoint,) = everything.one("ServiceMonitor")["spec"]["endpoints"]
    assert endpoint["port"] == http["name"]
    assert endpoint["path"] in create_app(Settings()).openapi()["paths"]
    for probe in ("startup", "readiness", "liveness"):
        assert everything.container[f"{probe}Probe"]["httpGet"]["port"] == "http"
    (predictor,) = inference["spec"]["predictor"]["containers"]
    assert {port["name"]: port["containerPort"] for port in predictor["ports"]} == listening


def test_every_variable_is_a_setting(everything: Rendered, inference: Any) -> None:
    settings(everything.environment)
    (predictor,) = inference["spec"]["predictor"]["containers"]
    settings({one["name"]: one["value"] for one in predictor["env"]})


def test_service_links_do_not_set_the_port(resources: Rendered, inference: Any) -> None:
    assert resources.pod["enableServiceLinks"] is False  # GOOGLENET_PORT=tcp://...
    assert inference["spec"]["predictor"]["enableServiceLinks"] is False


def test_the_pod_has_the_settings_of_its_config_map(resources: Rendered) -> None:
    name = resources.all("ConfigMap")[0]["metadata"]["name"]
    for container in resources.containers:
        assert container["envFrom"] == [{"configMapRef": {"name": name}}]


def test_the_grace_period_covers_a_shutdown(everything: Rendered, inference: Any) -> None:
    chosen = settings(everything.environment)
    needed = chosen.drain_seconds + chosen.grace_seconds + CLOSING
    assert everything.pod["terminationGracePeriodSeconds"] > needed
    assert inference["spec"]["predictor"]["terminationGracePeriodSeconds"] > needed
    assert chosen.drain_seconds > 2 * everything.container["readinessProbe"]["periodSeconds"]


def test_selectors_select_the_pods_and_the_service(everything: Rendered) -> None:
    deployment = everything.one("Deployment")["spec"]
    selected = deployment["selector"]["matchLabels"]
    assert selected.items() <= deployment["template"]["metadata"]["labels"].items()
    assert everything.one("Service")["spec"]["selector"] == selected
    assert everything.one("PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == selected
    assert everything.one("NetworkPolicy")["spec"]["podSelector"]["matchLabels"] == selected
    for spread in everything.pod["topologySpreadConstraints"]:
        assert spread["labelSelector"]["matchLabels"] == selected
    monitored = everything.one("ServiceMonitor")["spec"]["selector"]["matchLabels"]
    assert monitored.items() <= everything.one("Service")["metadata"]["labels"].items()


def test_containers_have_minimal_privileges(everything: Rendered, inference: Any) -> None:
    user, group = map(int, instruction("USER").split(":"))
    predictor = inference["spec"]["predictor"]
    for pod in (everything.pod, predictor):
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"].items() >= {
            "runAsNonRoot": True,
            "runAsUser": user,
            "runAsGroup": group,
            "seccompProfile": {"type": "RuntimeDefault"},
        }.items()  # fmt: skip
    for container in (*everything.containers, *predictor["containers"]):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


def test_the_namespace_admits_only_restricted_pods(resources: Rendered) -> None:
    labels = resources.one("Namespace")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


def test_images_are_those_that_compose_builds(everything: Rendered, inference: Any) -> None:
    gpu = "nvidia.com/gpu" in everything.container["resources"]["limits"]
    built = {name: one["image"] for name, one in OURS.items()}
    assert everything.container["image"] == built["googlenet-gpu" if gpu else "googlenet"]
    (fetching,) = everything.pod["initContainers"]
    name, version = built["googlenet"].removesuffix("-cpu").split(":")
    assert fetching["image"] == f"{name}:{version}-torch"  # it converts: `make image DEVICE=torch`
    (predictor,) = inference["spec"]["predictor"]["containers"]
    assert predictor["image"] == built["googlenet"]


def test_a_pod_has_exclusive_whole_cpus(resources: Rendered) -> None:
    given = resources.container["resources"]
    assert given["requests"] == given["limits"]
    assert given["limits"]["cpu"].isdecimal()  # whole: cpu_info.available() rounds down


def test_only_the_gpu_overlay_requires_a_gpu(render: Any) -> None:
    cpu, gpu = render(("cpu", ())), render(("gpu", ()))
    assert "nvidia.com/gpu" not in cpu.container["resources"]["limits"]
    assert gpu.container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert settings(cpu.environment).device == "auto"
    assert settings(gpu.environment).device == "cuda"
    assert gpu.pod["tolerations"][0]["key"] == "nvidia.com/gpu"


def test_a_rollout_never_has_fewer_pods(resources: Rendered) -> None:
    rolling = resources.one("Deployment")["spec"]["strategy"]["rollingUpdate"]
    assert rolling == {"maxSurge": 1, "maxUnavailable": 0}


def gauges() -> set[str]:
    return {one.name for one in Metrics().registry.collect() if one.type == "gauge"}


def test_scalers_query_a_gauge_of_the_service(render: Any) -> None:
    (metric,) = render(("cpu", ("hpa",))).one("HorizontalPodAutoscaler")["spec"]["metrics"]
    asked = metric["pods"]["metric"]["name"]
    assert asked in gauges()
    adapter = yaml.safe_load((HERE / "components/hpa/adapter.yaml").read_text("utf-8"))
    (rule,) = adapter["rules"]["custom"]
    assert re.findall(r"googlenet_\w+", rule["seriesQuery"]) == [asked]
    assert "avg_over_time" in rule["metricsQuery"]
    rendered = render(("cpu", ("keda", "monitoring", "fetch")))
    (trigger,) = rendered.one("ScaledObject")["spec"]["triggers"]
    assert re.findall(r"googlenet_\w+", trigger["metadata"]["query"]) == [asked]


def test_kedas_query_selects_this_deployment(render: Any) -> None:
    rendered = render(("cpu", ("keda", "monitoring", "fetch")))
    (trigger,) = rendered.one("ScaledObject")["spec"]["triggers"]
    labels = dict(re.findall(r'(\w+)="(\w+)"', trigger["metadata"]["query"]))
    service = rendered.one("Service")["metadata"]  # a job has the Service's name
    assert labels == {"namespace": service["namespace"], "job": service["name"]}


def quantity(text: str) -> float:
    return float(text[:-1]) / 1000 if text.endswith("m") else float(text)


def test_the_wait_that_adds_pods_is_a_quarter_of_the_latency_objective(render: Any) -> None:
    text = (ROOT / "deploy/prometheus/recording.yml").read_text("utf-8")
    rules = [rule for group in yaml.safe_load(text)["groups"] for rule in group["rules"]]
    record = "googlenet:latency_seconds:objective"
    (objective,) = [rule["expr"] for rule in rules if rule["record"] == record]
    (metric,) = render(("cpu", ("hpa",))).one("HorizontalPodAutoscaler")["spec"]["metrics"]
    wait = quantity(metric["pods"]["target"]["averageValue"])
    assert objective == f"vector({4 * wait:g})"


def test_both_scalers_have_the_same_behaviour(render: Any) -> None:
    hpa = render(("cpu", ("hpa",))).one("HorizontalPodAutoscaler")["spec"]
    keda = render(("cpu", ("keda", "monitoring", "fetch"))).one("ScaledObject")["spec"]
    assert keda["scaleTargetRef"]["name"] == hpa["scaleTargetRef"]["name"]
    assert keda["minReplicaCount"] == hpa["minReplicas"]
    assert keda["maxReplicaCount"] == hpa["maxReplicas"]
    assert keda["advanced"]["horizontalPodAutoscalerConfig"]["behavior"] == hpa["behavior"]
    (trigger,), (metric,) = keda["triggers"], hpa["metrics"]
    target = metric["pods"]["target"]["averageValue"]
    assert float(trigger["metadata"]["threshold"]) == quantity(target)


@pytest.mark.parametrize("scaler", ["hpa", "keda"])
def test_a_scaler_removes_the_replica_count(scaler: str, render: Any) -> None:
    components = ("hpa",) if scaler == "hpa" else ("keda", "monitoring", "fetch")
    rendered = render(("cpu", components))
    assert "replicas" not in rendered.one("Deployment")["spec"]
    kind = {"hpa": "HorizontalPodAutoscaler", "keda": "ScaledObject"}[scaler]
    target = rendered.one(kind)["spec"]["scaleTargetRef"]["name"]
    assert target == rendered.one("Deployment")["metadata"]["name"]


def test_two_scalers_together_do_not_render(tmp_path: Path) -> None:
    assert kustomize(overlay_with(tmp_path, "cpu", ["hpa", "keda"])).returncode != 0


def test_weights_are_fetched_before_the_service_starts(everything: Rendered) -> None:
    (fetching,) = everything.pod["initContainers"]
    chosen = settings(everything.environment)
    assert fetching["args"] == ["models", "fetch", "$(GOOGLENET_MODEL)"]
    (written,) = [one for one in fetching["volumeMounts"] if one["name"] == "models"]
    (read,) = [one for one in everything.container["volumeMounts"] if one["name"] == "models"]
    assert written == {"name": "models", "mountPath": str(chosen.model_store)}
    assert read == {**written, "readOnly": True}
    assert not chosen.download_weights


def test_only_the_fetch_component_allows_egress(render: Any) -> None:
    assert render(("cpu", ())).one("NetworkPolicy")["spec"]["egress"] == []
    fetching = render(EVERYTHING[0]).one("NetworkPolicy")["spec"]["egress"]
    ports = {port["port"] for rule in fetching for port in rule["ports"]}
    assert ports == {53, 80, 443}


@pytest.fixture(scope="session")
def rules() -> Any:
    """The script that writes PrometheusRules."""
    return runpy.run_path(str(HERE / "rules.py"))


def test_every_rule_file_is_a_prometheus_rule(rules: Any) -> None:
    config = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text("utf-8"))
    assert config["rule_files"] == [f"{name}.yml" for name in rules["NAMES"]]
    for name in rules["NAMES"]:
        made = rules["render"](name)
        there = (rules["MONITORING"] / f"{name}.yaml").read_text("utf-8")
        assert there == made, "run: python deploy/kubernetes/rules.py"
        source = yaml.safe_load((rules["RULES"] / f"{name}.yml").read_text("utf-8"))
        assert yaml.safe_load(made)["spec"] == source


def test_every_rule_and_dashboard_is_in_the_cluster(render: Any, rules: Any) -> None:
    rendered = render(EVERYTHING[0])
    names = {one["metadata"]["name"] for one in rendered.all("PrometheusRule")}
    assert names == {f"googlenet-{name}" for name in rules["NAMES"]}
    (dashboards,) = [
        one
        for one in rendered.all("ConfigMap")
        if one["metadata"].get("labels", {}).get("grafana_dashboard") == "1"
    ]
    files = sorted((ROOT / "deploy/grafana").glob("*.json"))
    assert dashboards["data"] == {file.name: file.read_text("utf-8") for file in files}
    assert len(json.dumps(dashboards)) < 2**20  # the limit of a ConfigMap


def test_kserves_predictor_is_a_pod(inference: Any) -> None:
    pod = dict(inference["spec"]["predictor"])
    assert {pod.pop("minReplicas"), pod.pop("maxReplicas")} == {2, 10}
    metadata = {"name": "predictor"}
    named = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": pod}
    validate(named, kubernetes_validate.latest_version())
    assert inference["apiVersion"] == "serving.kserve.io/v1beta1"
    assert [one["name"] for one in pod["containers"]] == ["kserve-container"]


def test_kserves_predictor_is_that_of_the_overlay(inference: Any, render: Any) -> None:
    (predictor,) = inference["spec"]["predictor"]["containers"]
    ours = render(("cpu", ()))
    assert predictor["resources"] == ours.container["resources"]
    assert predictor["volumeMounts"] == ours.container["volumeMounts"]
    assert inference["spec"]["predictor"]["volumes"] == ours.pod["volumes"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        theirs = {**predictor[probe], "httpGet": {**predictor[probe]["httpGet"], "port": "http"}}
        assert theirs == ours.container[probe]


def test_the_documented_overlay_renders(tmp_path: Path) -> None:
    text = (HERE / "README.md").read_text("utf-8")
    (example,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    shutil.copytree(ROOT / "deploy", tmp_path / "deploy")
    beside = tmp_path / "deploy/kubernetes/overlays/own"
    beside.mkdir()
    (beside / "kustomization.yaml").write_text(example, "utf-8")
    done = kustomize(beside)
    assert done.returncode == 0, done.stderr
    rendered = Rendered(yaml.safe_load_all(done.stdout))
    assert rendered.container["image"].startswith("registry.example/googlenet-service:")
    assert rendered.one("HorizontalPodAutoscaler")


def test_every_folder_is_documented() -> None:
    text = (HERE / "README.md").read_text("utf-8")
    folders = [*HERE.glob("overlays/*"), *HERE.glob("components/*"), HERE / "kserve"]
    for folder in folders:
        assert f"`{folder.relative_to(HERE)}`" in text
