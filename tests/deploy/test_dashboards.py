"""Grafana dashboards: layout, and every query of dashboards and rules against a live service.

The latter by a real Prometheus that scrapes a real service under mixed traffic.
"""

import json
import math
import re
import runpy
import shutil
import socket
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from typing import Any

import httpx2
import pytest
from conftest import ROOT, missing, serving, wait_ready
from test_prometheus import ALERTS, RECORDED, SYNTHETIC, exported, named

from benchmarks.prometheus import Prometheus, watching
from service.serving.metrics.gpu_collector import GPUCollector

FOLDER = ROOT / "deploy/grafana"
SOURCE = FOLDER / "dashboards.py"
BOARDS: Mapping[str, Any] = {
    path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))
}
PANELS = {
    f"{name}/{panel['title']}": panel
    for name, board in BOARDS.items()
    for panel in board["panels"]
    if panel["type"] != "row"
}
VARIABLES = {
    "$job": "googlenet",
    "$instance": ".+",
    "$__rate_interval": "4s",  # four scrapes, as in Grafana
    "$__range": "1m",
}
SCRAPED_EVERY = 1.0  # seconds
DIGIT = (ROOT / "model_store/digits/held_out/3.png").read_bytes()
MOST_BYTES = 100_000  # of a body


@dataclass(frozen=True)
class Query:
    """A query to Prometheus, now or over the time of the traffic."""

    expr: str
    instant: bool = True


def queries() -> dict[str, Query]:
    """Return every query of every panel and rule, by its place."""
    panels = {
        f"{name}/{target['legendFormat']}": Query(
            substituted(target["expr"]), target.get("instant", False)
        )
        for name, panel in PANELS.items()
        for target in panel["targets"]
    }
    recorded = {name: Query(rule["expr"]) for name, rule in RECORDED.items()}
    alerts = {name: Query(rule["expr"]) for name, rule in ALERTS.items()}
    return {**panels, **recorded, **alerts}


def substituted(expr: str) -> str:
    """Substitute the variables in a query, as Grafana does."""
    for name, value in VARIABLES.items():
        expr = expr.replace(name, value)
    return expr


QUERIES = queries()

# Queries without data here; all others must have data.
NO_GPU = "there is no NVIDIA GPU"
EMPTY = {
    "GooglenetNoneReady": "the service is ready",
    "GooglenetNotReady": "the service is ready",
    "GooglenetWorkerStalled": "no batch takes 15 s",
    "GooglenetBatchesFail": "no batch fails",
    "GooglenetWorkerRestarts": "the worker does not end",
    "GooglenetRestartLoop": "the service is started once",
    "GooglenetTargetDown": "the service answers",
    "GooglenetAbsent": "the service is there",
    "GooglenetDrift": "the model has no reference",
    "overview/Drift/{{model}} {{views}} {{distribution}}": "the model has no reference",
}
if not any(family.samples for family in GPUCollector().collect()):
    EMPTY |= {name: NO_GPU for name in QUERIES if "googlenet_gpu_" in QUERIES[name].expr}


@dataclass(frozen=True)
class Watched:
    """A Prometheus, and the start of the traffic."""

    prometheus: Prometheus
    since: float


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """A Prometheus that has watched a service under mixed traffic."""
    if not shutil.which("prometheus"):
        missing("prometheus")
    small = (
        *("--model", "digits", "--device", "cpu", "--precision", "float32", "--cpu-threads", "1"),
        *("--max-batch", "4", "--timeout-seconds", "5"),
        *("--max-body-bytes", str(MOST_BYTES)),
    )
    folder = tmp_path_factory.mktemp("prometheus")
    with (
        serving(*small) as served,
        httpx2.Client(base_url=f"http://127.0.0.1:{served.port}", timeout=60) as client,
    ):
        wait_ready(client)
        with watching(served.port, folder, every=SCRAPED_EVERY) as prometheus:
            since = time.time()
            for _ in range(2):  # a counter's first sample has no rate
                drive(client, served.port)
                time.sleep(2 * SCRAPED_EVERY)
            yield Watched(prometheus, since)


def drive(client: httpx2.Client, port: int) -> None:
    """Send requests of every kind, then an overload."""
    png = {"Content-Type": "image/png"}
    statuses: Counter[int] = Counter()

    def post(path: str = "/classify", **options: Any) -> None:
        statuses[client.post(path, **options).status_code] += 1

    for views in ("single", "ten", "dense"):
        post(f"/classify?views={views}", content=DIGIT, headers=png)
    post(files=[("file", DIGIT), ("file", DIGIT), ("file", b"no image")])
    post(content=DIGIT, headers={**png, "Priority": "u=7"})
    post(content=DIGIT[:100], headers=png)
    post(content=b"no image", headers=png)
    post(json={})
    post(content=bytes(MOST_BYTES + 1), headers=png)
    post("/classify?top_k=0", content=DIGIT, headers=png)
    for _ in range(20):  # deadlines that cannot be met
        post("/classify?views=paper", content=DIGIT, headers={**png, "X-Timeout-Ms": "1"})
    with ThreadPoolExecutor(36) as threads:
        for _ in range(36):
            threads.submit(post, "/classify?views=paper", content=DIGIT, headers=png)
        leave(port)
    assert {200, 413, 415, 422, 503, 504} == set(statuses), statuses


def leave(port: int) -> None:
    """Send a request and disconnect before the response."""
    head = (
        "POST /classify?views=single HTTP/1.1\r\nHost: here\r\nContent-Type: image/png\r\n"
        f"Content-Length: {len(DIGIT)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(head.encode() + DIGIT)


@pytest.mark.parametrize("name", QUERIES)
def test_every_query_has_data(name: str, watched: Watched) -> None:
    query = QUERIES[name]
    if query.instant:
        answer = watched.prometheus.get("query", query=query.expr)
        values = [series["value"] for series in answer["result"]]
    else:
        when = {"start": watched.since, "end": time.time(), "step": SCRAPED_EVERY}
        answer = watched.prometheus.get("query_range", query=query.expr, **when)
        values = [value for series in answer["result"] for value in series["values"]]
    found = [value for _, value in values if not math.isnan(float(value))]
    assert bool(found) == (name not in EMPTY), EMPTY.get(name, "no data, and not listed in EMPTY")


def test_every_empty_query_exists() -> None:
    assert EMPTY.keys() <= QUERIES.keys()


def test_prometheus_evaluates_every_rule_without_an_error(watched: Watched) -> None:
    groups = watched.prometheus.get("rules")["groups"]
    health = {rule["name"]: rule["health"] for group in groups for rule in group["rules"]}
    assert health == dict.fromkeys({*RECORDED, *ALERTS}, "ok")


@pytest.mark.parametrize(("board", "at"), [*product(BOARDS, (1, 2))])
def test_a_variable_lists_its_values(board: str, at: int, watched: Watched) -> None:
    asked = BOARDS[board]["templating"]["list"][at]["query"]["query"]
    found = re.fullmatch(r"label_values\((.+), (\w+)\)", substituted(asked))
    assert found, asked
    values = watched.prometheus.get(f"label/{found[2]}/values", **{"match[]": found[1]})
    expected = {"job": r"googlenet", "instance": r"127\.0\.0\.1:\d+"}
    assert [bool(re.fullmatch(expected[found[2]], value)) for value in values] == [True]


@pytest.mark.parametrize("name", BOARDS)
def test_a_dashboard_is_what_the_script_writes(name: str) -> None:
    source = runpy.run_path(str(SOURCE))
    made = {board.name: source["rendered"](board) for board in source["DASHBOARDS"]}
    assert made.keys() == BOARDS.keys()
    assert (FOLDER / f"{name}.json").read_text() == made[name], "run deploy/grafana/dashboards.py"


@pytest.mark.parametrize("name", BOARDS)
def test_panels_fill_the_grid_and_do_not_overlap(name: str) -> None:
    places = [panel["gridPos"] for panel in BOARDS[name]["panels"]]
    cells = Counter(
        (x, y)
        for at in places
        for x in range(at["x"], at["x"] + at["w"])
        for y in range(at["y"], at["y"] + at["h"])
    )
    height = max(at["y"] + at["h"] for at in places)
    assert cells == dict.fromkeys(product(range(24), range(height)), 1)


@pytest.mark.parametrize("name", PANELS)
def test_a_panel_has_a_title_a_description_and_a_unit(name: str) -> None:
    panel = PANELS[name]
    assert panel["type"] in {"timeseries", "stat", "heatmap", "table"}
    assert panel["title"]
    assert panel["description"].endswith(".")
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["targets"]


def test_titles_and_ids_are_unique_in_a_dashboard() -> None:
    for board in BOARDS.values():
        panels = board["panels"]
        assert len({panel["id"] for panel in panels}) == len(panels)
        assert len({panel["title"] for panel in panels}) == len(panels)


def test_dashboards_link_to_each_other_and_have_stable_uids() -> None:
    assert {name: board["uid"] for name, board in BOARDS.items()} == {
        "overview": "googlenet-overview",
        "process": "googlenet-process",
        "capacity": "googlenet-capacity",
    }
    for board in BOARDS.values():
        (link,) = board["links"]
        assert set(link["tags"]) <= set(board["tags"])
        assert [one["name"] for one in board["templating"]["list"]] == [
            *("datasource", "job", "instance"),
        ]


def test_every_metric_of_a_panel_exists() -> None:
    known = exported() | RECORDED.keys() | SYNTHETIC
    asked = {name: named(query.expr) for name, query in QUERIES.items()}
    assert {name: names - known for name, names in asked.items() if names - known} == {}


@pytest.mark.parametrize(("panel", "objective", "share"), [
    ("overview/Availability", "googlenet:availability:objective", 1),
    ("overview/p99", "googlenet:latency_seconds:objective", 1),
    ("overview/Answers", "googlenet:latency_seconds:objective", 1),
    ("overview/Wait for a device", "googlenet:latency_seconds:objective", 0.5),
])  # fmt: skip
def test_a_colour_changes_at_the_objective(panel: str, objective: str, share: float) -> None:
    steps = PANELS[panel]["fieldConfig"]["defaults"]["thresholds"]["steps"]
    assert f"vector({steps[-1]['value'] / share:g})" == RECORDED[objective]["expr"]
