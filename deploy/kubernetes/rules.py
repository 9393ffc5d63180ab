"""Write Prometheus's rule files as PrometheusRules: the same lines, indented, below a head.

Run it after a change of a rule in deploy/prometheus: Kustomize cannot include files.
"""

from pathlib import Path

HERE = Path(__file__).parent
RULES = HERE.parent / "prometheus"
MONITORING = HERE / "components/monitoring"
NAMES = ("recording", "alerts")

HEAD = """\
# Generated from deploy/prometheus/{name}.yml by deploy/kubernetes/rules.py; change it there.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: googlenet-{name}
spec:
"""


def render(name: str) -> str:
    """Give the PrometheusRule for a rule file."""
    lines = (RULES / f"{name}.yml").read_text("utf-8").splitlines()
    indented = (f"  {line}".rstrip() for line in lines)
    return HEAD.format(name=name) + "\n".join(indented) + "\n"


def main() -> None:
    """Write all of them."""
    for name in NAMES:
        (MONITORING / f"{name}.yaml").write_text(render(name), "utf-8")


if __name__ == "__main__":
    main()
