"""Prometheus rules: valid, tested one by one, documented, and of metrics that exist."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT, fake_backend, missing
from prometheus_client import Metric
from test_classify import service
from test_metrics import families

from benchmarks.prometheus import SHIPPED, hurried

RULES = ("recording.yml", "alerts.yml")
TESTS = sorted((SHIPPED / "tests").glob("*.yml"))
RUNBOOK = ROOT / "docs/runbook.md"

# Of Prometheus itself.
SYNTHETIC = {"up", "ALERTS"}

# Words in PromQL that are not a metric's name: the rest of its grammar.
_NO_METRIC = re.compile(
    r"""
      "[^"]*"                                     # a label's value
    | \#.*                                        # a comment
    | \{[^}]*\} | \[[^]]*\]                       # selectors, ranges
    | \b\w+\s+(?=by\b|without\b)                  # an aggregation
    | \b(by|without|on|ignoring|group_left)\b\s*(\([^)]*\))?
    | \b(and|or|unless|offset|bool|Inf|NaN)\b
    | \b\w+\s*(?=\()                              # a function
    """,
    re.VERBOSE,
)


def named(expr: str) -> set[str]:
    """Return the metrics in an expression."""
    return set(re.findall(r"\b[a-zA-Z_][\w:]*", _NO_METRIC.sub(" ", expr.replace("$__", ""))))


def rules() -> list[dict[str, Any]]:
    """Return every rule, recording or alerting."""
    groups = [
        group for name in RULES for group in yaml.safe_load((SHIPPED / name).read_text())["groups"]
    ]
    return [rule for group in groups for rule in group["rules"]]


ALERTS = {rule["alert"]: rule for rule in rules() if "alert" in rule}
RECORDED = {rule["record"]: rule for rule in rules() if "record" in rule}


def promtool(*arguments: str | Path) -> str:
    """Run promtool; fail with its output."""
    if not shutil.which("promtool"):
        missing("promtool")
    done = subprocess.run(  # noqa: S603 - our own arguments
        ["promtool", *map(str, arguments)],  # noqa: S607 - any promtool
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def samples(family: Metric) -> set[str]:
    """Return the names of a family's samples, also if it has none yet."""
    endings = {
        "counter": ("_total", "_created"),
        "histogram": ("_bucket", "_sum", "_count", "_created"),
    }
    return {family.name + ending for ending in endings.get(family.type, ("",))}


@cache
def exported() -> frozenset[str]:
    """Return the names of all metrics of a ready service."""
    with service(lambda *_: fake_backend()) as client:
        return frozenset(name for family in families(client) for name in samples(family))


def cases() -> Iterator[dict[str, Any]]:
    """Yield each check of each promtool test."""
    for path in TESTS:
        for test in yaml.safe_load(path.read_text())["tests"]:
            yield from test["promql_expr_test"]


def test_the_configuration_and_its_rules_are_valid() -> None:
    assert f"{len(RULES)} rule files found" in promtool(
        "check", "config", SHIPPED / "prometheus.yml"
    )


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_the_rules_pass_their_promtool_tests(path: Path) -> None:
    promtool("test", "rules", path)


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_has_a_test_that_fires_and_one_that_does_not(alert: str) -> None:
    asked = [case for case in cases() if f'alertname="{alert}"' in case["expr"]]
    firing = ['alertstate="firing"' in str(case["exp_samples"]) for case in asked]
    assert set(firing) == {True, False}
    assert any(not case["exp_samples"] for case in asked)


@pytest.mark.parametrize("record", RECORDED)
def test_every_recorded_series_has_a_test(record: str) -> None:
    assert any(record in named(case["expr"]) and case["exp_samples"] for case in cases())


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_has_a_severity_texts_and_a_runbook(alert: str) -> None:
    rule = ALERTS[alert]
    assert rule["labels"]["severity"] in {"page", "ticket"}
    assert set(rule["annotations"]) == {"summary", "description", "runbook"}
    assert all(text.strip() for text in rule["annotations"].values())
    assert rule["annotations"]["runbook"] == f"docs/runbook.md#{alert.lower()}"


def test_the_runbook_has_a_section_for_each_alert_and_for_no_other() -> None:
    parts = re.split(r"^## (\w+)$", RUNBOOK.read_text(), flags=re.MULTILINE)[1:]
    sections = dict(zip(parts[::2], parts[1::2], strict=True))
    assert list(sections) == list(ALERTS)
    for text in sections.values():
        assert re.findall(r"^\*\*(.+?)\*\*", text, re.MULTILINE) == [
            *("Meaning.", "First look.", "Likely causes.", "What to do."),
        ]


def test_every_metric_of_a_rule_exists() -> None:
    known = exported() | RECORDED.keys() | SYNTHETIC
    asked = {
        name: named(rule["expr"])
        for rule in rules()
        for name in [rule.get("alert", rule.get("record"))]
    }
    assert {rule: names - known for rule, names in asked.items() if names - known} == {}


def test_metrics_are_found_in_an_expression() -> None:
    expr = 'sum by (a, le) (rate(b_total{c="d e"}[5m])) / on (h) group_left i:j:k offset 1h # l'
    assert named(expr) == {"b_total", "i:j:k"}


@pytest.mark.parametrize(("rule", "faster", "hurried_rule"), [
    ("rate(a[5m])", 60, "rate(a[5000ms])"),
    ("for: 1d\n", 86400, "for: 1000ms\n"),
    ("a > 15 # 5m", 60, "a > 15 # 5m"),
])  # fmt: skip
def test_only_windows_and_delays_are_hurried(rule: str, faster: float, hurried_rule: str) -> None:
    assert hurried(rule, faster) == hurried_rule
