"""Grafana dashboards: panels with their queries, written as the JSON files beside this one.

    python deploy/grafana/dashboards.py

The JSON is generated, never edited; a test compares it with this script's output.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

HERE = Path(__file__).parent
COLUMNS = 24  # of Grafana's grid
ROW_HEIGHT = 1
SOURCE = {"type": "prometheus", "uid": "${datasource}"}

MINE = 'job="$job", instance=~"$instance"'
# The objectives exclude background requests, which yield to others.
INTERACTIVE = f'{MINE}, priority!="background"'
BACKGROUND = f'{MINE}, priority="background"'
CLASSIFY = 'route="/classify", method="POST"'
ANSWERED = 'route="/classify", code="200"'
JOB = 'job="$job"'  # of recorded series, one for each deployment

Kind = Literal["timeseries", "stat", "heatmap", "table"]


@dataclass(frozen=True, slots=True)
class Panel:
    """A panel: queries by legend, and how to draw them."""

    title: str
    description: str
    queries: Mapping[str, str]
    unit: str = "short"
    kind: Kind = "timeseries"
    width: int = 8
    height: int = 8
    stacked: bool = False
    most: float | None = None  # of the axis
    limits: Mapping[str, float] = field(default_factory=dict)  # colour to threshold


@dataclass(frozen=True, slots=True)
class Row:
    """Panels under a heading; they fill whole lines of the grid."""

    title: str
    panels: Sequence[Panel]


@dataclass(frozen=True, slots=True)
class Dashboard:
    """A dashboard file: its name (also the end of its uid) and its rows."""

    name: str
    title: str
    description: str
    rows: Sequence[Row]


def rate(metric: str, labels: str = MINE, by: str = "") -> str:
    """Sum a counter's rate."""
    return f"sum{_by(by)} (rate({metric}{{{labels}}}[$__rate_interval]))"


def quantile(share: float, metric: str, labels: str = MINE, by: str = "") -> str:
    """Estimate a quantile of a histogram."""
    within = ", ".join(filter(None, [by, "le"]))
    return f"histogram_quantile({share}, {rate(f'{metric}_bucket', labels, within)})"


def quantiles(metric: str, labels: str = MINE) -> dict[str, str]:
    """Estimate p50, p90 and p99."""
    return {f"p{share * 100:g}": quantile(share, metric, labels) for share in (0.5, 0.9, 0.99)}


def heat(metric: str, labels: str = MINE) -> dict[str, str]:
    """Count a histogram's buckets for a heat map."""
    return {"{{le}}": f"sum by (le) (increase({metric}_bucket{{{labels}}}[$__rate_interval]))"}


def mean(metric: str, labels: str = MINE) -> str:
    """Give a histogram's mean."""
    return f"{rate(f'{metric}_sum', labels)} / {rate(f'{metric}_count', labels)}"


def _by(labels: str) -> str:
    return f" by ({labels})" if labels else ""


BUDGET = "(1 - scalar(googlenet:availability:objective))"
# Every member of an ensemble computes the same number of rows: see recording.yml.
CAPACITY = (
    f'sum (count by (instance) (googlenet_capacity_rows_per_second{{{MINE}, side="224"}})'
    f' / sum by (instance) (1 / googlenet_capacity_rows_per_second{{{MINE}, side="224"}}))'
)
ROWS = rate("googlenet_batch_rows_sum")
AVAILABILITY, SECONDS = 0.99, 1  # the objectives of recording.yml
BURNS = {"orange": 1, "red": 14.4}
SHARES = {"orange": 0.7, "red": 0.9}

OVERVIEW = Dashboard(
    "overview",
    "GoogLeNet / overview",
    "What clients see, and where their time goes.",
    [
        Row("Objectives", [
            Panel("Alerts firing", "In all deployments; docs/runbook.md has a section for each.",
                {"": 'count(ALERTS{alertname=~"Googlenet.*", alertstate="firing"}) or vector(0)'},
                kind="stat", width=4, height=4, limits={"red": 1}),
            Panel("Instances ready", "Instances whose readiness probe succeeds.",
                {"": f"sum(googlenet_ready{{{MINE}}})"},
                kind="stat", width=4, height=4, limits={"green": 1}),
            Panel("Availability", "Share of the classifications in the time shown that did not end with a 5xx, without background requests; the objective is googlenet:availability:objective.",
                {"": f'1 - (sum(increase(googlenet_requests_total{{{INTERACTIVE}, {CLASSIFY}, code=~"5.."}}[$__range])) or vector(0)) / sum(increase(googlenet_requests_total{{{INTERACTIVE}, {CLASSIFY}}}[$__range]))'},
                "percentunit", "stat", width=4, height=4, limits={"green": AVAILABILITY}),
            Panel("Burn rate, 1 h", "Rate at which the error budget is used: at 1 it lasts exactly 30 days.",
                {"": f"job:googlenet_errors:ratio_rate1h{{{JOB}}} / {BUDGET}"},
                kind="stat", width=4, height=4, limits=BURNS),
            Panel("p99", "99 % of the answers of the last 5 minutes were faster.",
                {"": f"job:googlenet_request_duration_seconds:p99_rate5m{{{JOB}}}"},
                "s", "stat", width=4, height=4, limits={"red": SECONDS}),
            Panel("Utilisation", "Rows computed, as a share of the measured maximum of the devices.",
                {"": f"job:googlenet_utilisation:ratio_rate5m{{{JOB}}}"},
                "percentunit", "stat", width=4, height=4, limits=SHARES),
        ]),
        Row("Traffic and errors", [
            Panel("Classifications by status", "Requests to POST /classify a second, background requests included.",
                {"{{code}}": rate("googlenet_requests_total", f"{MINE}, {CLASSIFY}", "code")}, "reqps", stacked=True),
            Panel("Burn rates", "Share of requests that end with a 5xx, in budgets: over 14.4 in 1 h and 5 min, or over 6 in 6 h and 30 min, an alert pages.",
                {w: f"job:googlenet_errors:ratio_rate{w}{{{JOB}}} / {BUDGET}" for w in ("5m", "30m", "1h", "6h", "3d")},
                limits=BURNS),
            Panel("Refused or failed, by reason", "Requests and images, background requests included, by error code; see docs/reference/errors.md.",
                {"{{reason}}": f"{rate('googlenet_rejected_total', by='reason')} > 0"}, "reqps", stacked=True),
            Panel("Images by outcome", "A request may have several images, each with its own outcome. A request that was refused as a whole has none.",
                {"{{outcome}}": rate("googlenet_images_total", by="outcome")}, "ops", stacked=True),
            Panel("Images by views", "Views requested: ten views cost ten times one.",
                {"{{views}}": rate("googlenet_images_total", by="views")}, "ops", stacked=True),
            Panel("In flight", "Requests being answered, by instance: one with many more than the others has a fault.",
                {"{{instance}}": f"googlenet_requests_in_flight{{{MINE}}}"}),
        ]),
        Row("Latency", [
            Panel("Answers", "From a request's first byte to its answer's last, without refusals and background requests.",
                quantiles("googlenet_request_duration_seconds", f"{INTERACTIVE}, {ANSWERED}"), "s", limits={"red": SECONDS}),
            Panel("Stages, p50", "Where a typical image's time goes, without background requests.",
                {"{{stage}}": quantile(0.5, "googlenet_stage_duration_seconds", INTERACTIVE, by="stage")}, "s"),
            Panel("Stages, p99", "Where a slow image's time goes: queue means too few devices, inference a slow one, decode large images, upload a slow client, or the server of an image by URL.",
                {"{{stage}}": quantile(0.99, "googlenet_stage_duration_seconds", INTERACTIVE, by="stage")}, "s"),
            Panel("Answers, as a heat map", "Two stripes are two kinds of requests, such as one view and many.",
                heat("googlenet_request_duration_seconds", f"{INTERACTIVE}, {ANSWERED}"), "s", "heatmap", width=16),
            Panel("Queue to inference", "Seconds that images wait for each second that they are computed; over 1 add a device.",
                {"ratio": f"job:googlenet_queue_inference:ratio_rate5m{{{JOB}}}"}, limits={"orange": 1}),
        ]),
        Row("Batches and the queue", [
            Panel("Rows in a batch", "Larger under load: a batch is what has arrived when a device is free.",
                heat("googlenet_batch_rows"), kind="heatmap"),
            Panel("Rows waiting", "Views of accepted images that wait for a device or are being decoded.",
                {"{{instance}}": f"googlenet_queue_rows{{{MINE}}}"}),
            Panel("Wait for a device", "From an image's submission until its first row runs, without background requests. The alert is at half of the latency objective.",
                quantiles("googlenet_queue_wait_seconds", INTERACTIVE), "s", limits={"red": SECONDS / 2}),
            Panel("Padding", "Share of the computed rows that are padding.",
                {"padding": f"{rate('googlenet_batch_padding_rows_total')} / ({rate('googlenet_batch_padding_rows_total')} + {ROWS})"},
                "percentunit", most=1),
            Panel("Ready", "1 if an instance's readiness probe succeeds.",
                {"{{instance}}": f"googlenet_ready{{{MINE}}}"}, most=1),
            Panel("Oldest call", "Seconds since the oldest unanswered call to the worker; the liveness probe fails after 60 s.",
                {"{{instance}}": f"timestamp(googlenet_worker_last_heartbeat_timestamp_seconds{{{MINE}}}) - googlenet_worker_last_heartbeat_timestamp_seconds{{{MINE}}}"},
                "s", limits={"red": 15}),
        ]),
        Row("Confidence and drift", [
            Panel("Confidence", "Probability of the first label; a tenth of the answers are below the lower line.",
                {"median {{model}}": quantile(0.5, "googlenet_answer_confidence", by="model"),
                 "p10 {{model}}": quantile(0.1, "googlenet_answer_confidence", by="model")}, "percentunit", most=1),
            Panel("Entropy", "Mean entropy of the answers' probabilities, in nats; 0 is certain.",
                {"{{model}}": f"{rate('googlenet_answer_entropy_nats_sum', by='model')} / {rate('googlenet_answer_entropy_nats_count', by='model')}"}),
            Panel("Drift", "Population stability index of the last 1000 answers against the calibration images: from 0.1 on look at it, over 0.25 is an alert. No data without a calibration, and before 1000 answers.",
                {"{{model}} {{views}} {{distribution}}": f"max by (model, views, distribution) (googlenet_drift_psi{{{MINE}}})"},
                limits={"orange": 0.1, "red": 0.25}),
        ]),
        Row("Models and versions", [
            Panel("Models", "Name, version, checksum, device and number format, by instance.",
                {"": f"googlenet_model_info{{{MINE}}}"}, kind="table", width=12, height=6),
            Panel("Versions", "Of the service and its runtime.",
                {"": f"googlenet_build_info{{{MINE}}}"}, kind="table", width=12, height=6),
        ]),
    ],
)  # fmt: skip

PROCESS = Dashboard(
    "process",
    "GoogLeNet / processes",
    "The two processes of an instance: one serves HTTP, its worker decodes and computes.",
    [
        Row("Memory and CPU", [
            Panel("Resident memory", "It levels off after the first large batches; steady growth is a leak.",
                {"{{instance}} http": f"process_resident_memory_bytes{{{MINE}}}",
                 "{{instance}} {{model}}": f"googlenet_worker_process_resident_memory_bytes{{{MINE}}}"}, "bytes"),
            Panel("Cores at work", "CPU seconds a second.",
                {"{{instance}} http": rate("process_cpu_seconds_total", by="instance"),
                 "{{instance}} {{model}}": rate("googlenet_worker_process_cpu_seconds_total", by="instance, model")}),
            Panel("Threads", "Nearly constant; growth is a leak.",
                {"{{instance}} {{process}}": f"googlenet_process_threads{{{MINE}}}"}),
        ]),
        Row("Event loop", [
            Panel("Lag", "How late a timer fires in the process that serves HTTP: everything there waits that long, probes too.",
                quantiles("googlenet_event_loop_lag_seconds"), "s", limits={"orange": 0.1, "red": 1}),
            Panel("Lag, as a heat map", "Shows rare long stops, which a mean hides.",
                heat("googlenet_event_loop_lag_seconds"), "s", "heatmap", width=16),
        ]),
        Row("GPU", [
            Panel("GPU memory in use", "Of all processes on the GPU.",
                {"{{instance}} {{gpu}}": f"googlenet_gpu_memory_used_bytes{{{MINE}}}"}, "bytes"),
            Panel("GPU memory, share", "Near 1 a larger batch may fail.",
                {"{{instance}} {{gpu}}": f"googlenet_gpu_memory_used_bytes{{{MINE}}} / googlenet_gpu_memory_total_bytes{{{MINE}}}"},
                "percentunit", most=1, limits={"orange": 0.9, "red": 0.97}),
            Panel("GPU utilisation", "Share of the time in which a kernel ran; low under load means that the GPU waits for images.",
                {"{{instance}} {{gpu}}": f"googlenet_gpu_utilization_ratio{{{MINE}}}"}, "percentunit", most=1),
        ]),
        Row("Python", [
            Panel("Garbage collections", "By generation; each stops the process that serves HTTP for a moment.",
                {"generation {{generation}}": rate("python_gc_collections_total", by="generation")}, "ops", width=12),
            Panel("Objects collected", "Objects in reference cycles; uncollectable ones are leaks.",
                {"collected": rate("python_gc_objects_collected_total"),
                 "uncollectable": rate("python_gc_objects_uncollectable_total")}, "ops", width=12),
        ]),
        Row("Files and restarts", [
            Panel("Open files", "Connections are files.",
                {"{{instance}} http": f"process_open_fds{{{MINE}}}",
                 "{{instance}} {{model}}": f"googlenet_worker_process_open_fds{{{MINE}}}"}),
            Panel("Open files, share of the limit", "At 1 no connection is accepted.",
                {"{{instance}} http": f"process_open_fds{{{MINE}}} / process_max_fds{{{MINE}}}"},
                "percentunit", most=1, limits={"orange": 0.7, "red": 0.9}),
            Panel("Age", "Since the processes started.",
                {"{{instance}} http": f"time() - process_start_time_seconds{{{MINE}}}",
                 "{{instance}} {{model}}": f"time() - googlenet_worker_process_start_time_seconds{{{MINE}}}"}, "s"),
            Panel("Restarts, 30 min", "Over 2 is an alert.",
                {"{{instance}}": f"changes(process_start_time_seconds{{{MINE}}}[30m])"}, width=12, limits={"red": 3}),
            Panel("Start", "Seconds to load the models, and of these to warm up and time every batch size, until a new instance is ready.",
                {"{{instance}} {{model}} load": f"googlenet_model_load_seconds{{{MINE}}}",
                 "{{instance}} {{model}} warm-up": f"googlenet_model_warmup_seconds{{{MINE}}}"}, "s", width=12),
        ]),
    ],
)  # fmt: skip

CAPACITY_BOARD = Dashboard(
    "capacity",
    "GoogLeNet / capacity",
    "Load against measured capacity, and what is refused.",
    [
        Row("Rows", [
            Panel("Rows a second", "A row is one view of one image. The maximum is measured at the start and updated by every batch.",
                {"computed": ROWS, "maximum": CAPACITY}, "ops"),
            Panel("Headroom", "Additional rows a second that could be computed. Larger rows (dense views) cost more, so they make it look too large.",
                {"headroom": f"{CAPACITY} - {ROWS}"}, "ops"),
            Panel("Utilisation", "Computed over maximum; from 0.7 on add an instance before the queue grows.",
                {"utilisation": f"{ROWS} / {CAPACITY}"}, "percentunit", limits=SHARES),
            Panel("Maximum rows a second", "By member and the side of its rows: it falls when another process uses the device.",
                {"{{instance}} {{model}} {{member}} {{side}}": f"googlenet_capacity_rows_per_second{{{MINE}}}"}, "ops", width=12),
            Panel("Devices at work", "Device seconds a second: at the number of devices they are fully used.",
                {"rows of {{side}}": rate("googlenet_batch_duration_seconds_sum", by="side")}, width=12, stacked=True),
        ]),
        Row("Admission", [
            Panel("Predicted wait", "Until all accepted work is done. A request is refused if this, its own rows included, exceeds its deadline.",
                {"{{instance}}": f"googlenet_queue_predicted_seconds{{{MINE}}}"}, "s", limits={"red": 10}),
            Panel("Refused as overloaded", "Share of the requests to POST /classify, without background requests; the alert is at 5 %.",
                {"share": f"job:googlenet_overloaded:ratio_rate5m{{{JOB}}}"}, "percentunit", limits={"red": 0.05}),
            Panel("Bytes waiting", "Memory of accepted images; at --max-queue-bytes (512 MiB) requests are refused.",
                {"{{instance}}": f"googlenet_queue_bytes{{{MINE}}}"}, "bytes", limits={"red": 512 * 1024**2}),
            Panel("Admitted but dropped", "Jobs without an answer: late ones missed their deadline, cancelled ones lost their client. In a batch they cost device time, in the queue they do not.",
                {"{{why}}, {{where}}": rate("googlenet_cancelled_total", by="why, where")}, "ops", width=12, stacked=True),
            Panel("Batches failed", "The device raised an error; every image in the batch failed with a 500.",
                {"{{instance}}": rate("googlenet_batch_failures_total", by="instance")}, "ops", width=12, limits={"red": 1e-9}),
        ]),
        Row("Batches", [
            Panel("Batches by reason", "full: more rows waited; drained: all rows that waited; deadline: a larger batch would have been late.",
                {"{{reason}}": rate("googlenet_batches_total", by="reason")}, "ops", stacked=True),
            Panel("Rows in a batch, mean", "If it stays near 1 under load, decoding or the clients are the limit.",
                {"rows": mean("googlenet_batch_rows")}),
            Panel("Padding", "Share of the computed rows that are padding.",
                {"padding": f"{rate('googlenet_batch_padding_rows_total')} / ({rate('googlenet_batch_padding_rows_total')} + {ROWS})"},
                "percentunit", most=1),
            Panel("Batch duration", "The median, by the side of its rows.",
                {"{{side}}": quantile(0.5, "googlenet_batch_duration_seconds", by="side")}, "s", width=12),
            Panel("Time per row", "Device seconds for a row; it falls as batches grow.",
                {"a row": f"{rate('googlenet_batch_duration_seconds_sum')} / {ROWS}"}, "s", width=12),
        ]),
        Row("Background requests", [
            Panel("Background requests by status", "Requests to POST /classify with Priority: u=7, a second; their 503s count in no alert.",
                {"{{code}}": rate("googlenet_requests_total", f"{BACKGROUND}, {CLASSIFY}", "code")}, "reqps", stacked=True),
            Panel("Background rows waiting", "Rows of background requests in the queue.",
                {"{{instance}}": f"googlenet_queue_background_rows{{{MINE}}}"}),
            Panel("Background answers", "Duration; while interactive requests wait, background requests have --background-share of the time.",
                quantiles("googlenet_request_duration_seconds", f"{BACKGROUND}, {ANSWERED}"), "s"),
        ]),
        Row("Cache and images by URL", [
            Panel("Answered from the cache", "Cache hit ratio of images; no data without --cache-bytes.",
                {"share": f"{rate('googlenet_cache_hits_total')} / {rate('googlenet_images_total')}"}, "percentunit", most=1),
            Panel("Cache size", "Bytes; at --cache-bytes, for each model, the least recently used answers are removed.",
                {"{{instance}}": f"googlenet_cache_bytes{{{MINE}}}"}, "bytes"),
            Panel("Fetched by URL", "Images that --fetch-images is to fetch, by outcome; refused: the URL, or an address that is not public.",
                {"{{outcome}}": rate("googlenet_fetches_total", by="outcome")}, "ops", stacked=True),
        ]),
    ],
)  # fmt: skip

DASHBOARDS = (OVERVIEW, PROCESS, CAPACITY_BOARD)


def rendered(board: Dashboard) -> str:
    """Give a dashboard's file."""
    return json.dumps(_dashboard(board), indent=2, ensure_ascii=False) + "\n"


def _dashboard(board: Dashboard) -> dict[str, Any]:
    panels = [{"id": number, **panel} for number, panel in enumerate(_laid_out(board.rows), 1)]
    return {
        "uid": f"googlenet-{board.name}",
        "title": board.title,
        "description": board.description,
        "tags": ["googlenet"],
        "schemaVersion": 39,
        "editable": False,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "links": [_links()],
        "templating": {"list": _variables()},
        "panels": panels,
    }


def _links() -> dict[str, Any]:
    """Link to every dashboard with the tag, keeping time range and variables."""
    return {
        "type": "dashboards",
        "title": "GoogLeNet",
        "tags": ["googlenet"],
        "keepTime": True,
        "includeVars": True,
        "asDropdown": False,
        "icon": "external link",
        "targetBlank": False,
        "tooltip": "",
    }


def _variables() -> list[dict[str, Any]]:
    def asked(name: str, query: str, **more: Any) -> dict[str, Any]:
        shown = {"name": name, "label": name, "type": "query", "datasource": SOURCE}
        return {**shown, "query": {"query": query, "refId": name}, "refresh": 2, "sort": 1, **more}

    return [
        {"name": "datasource", "label": "datasource", "type": "datasource", "query": "prometheus"},
        asked("job", "label_values(googlenet_build_info, job)"),
        asked(
            "instance",
            'label_values(googlenet_build_info{job="$job"}, instance)',
            multi=True,
            includeAll=True,
            allValue=".+",
            current={"text": ["All"], "value": ["$__all"]},
        ),
    ]


def _laid_out(rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    """Place panels from left to right and top to bottom; those of a line have the same height."""
    y = 0
    for row in rows:
        where = {"x": 0, "y": y, "w": COLUMNS, "h": ROW_HEIGHT}
        yield {"type": "row", "title": row.title, "collapsed": False, "gridPos": where}
        x, y = 0, y + ROW_HEIGHT
        for panel in row.panels:
            yield _panel(panel, x, y)
            x += panel.width
            if x == COLUMNS:
                x, y = 0, y + panel.height


def _panel(panel: Panel, x: int, y: int) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": panel.unit, "thresholds": _thresholds(panel.limits)}
    if panel.kind == "timeseries":
        defaults |= {"min": 0, "custom": _drawing(panel)}
    if panel.kind == "stat":
        defaults |= {"color": {"mode": "thresholds"}, "noValue": "none"}
    if panel.most is not None:
        defaults["max"] = panel.most
    made = {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "gridPos": {"x": x, "y": y, "w": panel.width, "h": panel.height},
        "datasource": SOURCE,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": _options(panel),
        "targets": [
            _target(panel.kind, "ABCDE"[at], *query)
            for at, query in enumerate(panel.queries.items())
        ],
    }
    if panel.kind == "table":
        hidden = dict.fromkeys(("Time", "Value", "__name__", "job"), True)
        made["transformations"] = [{"id": "organize", "options": {"excludeByName": hidden}}]
    return made


def _drawing(panel: Panel) -> dict[str, Any]:
    drawn: dict[str, Any] = {"fillOpacity": 10}
    if panel.stacked:
        drawn = {"fillOpacity": 40, "stacking": {"mode": "normal", "group": "A"}}
    if panel.limits:
        drawn["thresholdsStyle"] = {"mode": "dashed"}
    return drawn


def _thresholds(limits: Mapping[str, float]) -> dict[str, Any]:
    below = "red" if "green" in limits else "green"
    steps = [{"color": color, "value": value} for color, value in limits.items()]
    return {"mode": "absolute", "steps": [{"color": below, "value": None}, *steps]}


def _options(panel: Panel) -> dict[str, Any]:
    if panel.kind == "stat":
        return {
            "colorMode": "background",
            "graphMode": "none",
            "reduceOptions": {"calcs": ["lastNotNull"]},
        }
    if panel.kind == "heatmap":
        return {
            "calculate": False,
            "color": {"mode": "scheme", "scheme": "Oranges"},
            "yAxis": {"unit": panel.unit},
            "tooltip": {"mode": "single"},
        }
    if panel.kind == "table":
        return {"showHeader": True}
    return {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}}


def _target(kind: Kind, ref: str, name: str, expr: str) -> dict[str, Any]:
    made: dict[str, Any] = {"refId": ref, "datasource": SOURCE, "expr": expr}
    if kind in ("stat", "table"):
        made |= {"instant": True, "range": False}
    if kind in ("heatmap", "table"):
        made["format"] = kind
    return {**made, "legendFormat": name or "__auto"}


def main() -> None:
    """Write the files."""
    for board in DASHBOARDS:
        (HERE / f"{board.name}.json").write_text(rendered(board))


if __name__ == "__main__":
    main()
