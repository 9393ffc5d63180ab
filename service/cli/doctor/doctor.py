"""The doctor command: what this machine has, what serve would choose, and what is wrong.

It asks the functions that serve uses, so that both say the same.
"""

from typing import Any

from service.cli import console
from service.cli.doctor import choice, configuration, downloads, finding, machine, model_files
from service.models import store
from service.settings import Settings


def doctor(settings: Settings, _: dict[str, Any]) -> int:
    """Print what was found; returns 1 if there is a problem, else 0."""
    model_store = store.locate(settings.model_store)
    answers = downloads.ask(model_store)  # while models are read and loaded
    files = model_files.models(model_store)
    chosen, serves = choice.choose(settings, model_store)
    findings = [
        machine.system(),
        machine.cpu(),
        machine.gpu(settings, chosen),
        machine.memory(settings, chosen),
        machine.packages(),
        configuration.given(settings),
        configuration.ports(settings),
        files,
        downloads.network(answers),
        downloads.missing(settings, model_store, answers),
        serves,
    ]
    console.say("\n".join(finding.text(findings)))
    return int(any(found.problems for found in findings))
