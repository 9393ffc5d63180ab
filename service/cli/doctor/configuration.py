"""The settings and the ports, checked as serve checks them."""

import errno
from contextlib import ExitStack

from service.cli.doctor.finding import Finding, Problem
from service.errors import CannotListen, ServiceError
from service.server import app, listeners, process_count, serve
from service.settings import Settings

_NOT_PRINTED = {"api_key_hashes"}
_REMEDY = "correct it; googlenet-service serve --help describes every setting"

_PORTS = (  # purpose, setting, and what 0 means
    ("HTTP", "port", "any free one"),
    ("probes", "probe_port", "that of HTTP"),
    ("gRPC", "grpc_port", "none"),
)


def given(settings: Settings) -> Finding:
    """List the settings that are given, and check all."""
    values = {name: getattr(settings, name) for name in sorted(settings.model_fields_set)}
    shown = [name if name in _NOT_PRINTED else f"{name}={value}" for name, value in values.items()]
    problems, certificate = [], None
    try:  # strictly: a variable that changes nothing is a problem
        certificate = serve.check(settings.model_copy(update={"require_model": True}))
    except ServiceError as error:
        problems.append(Problem(str(error), _REMEDY))
    try:
        app.create_app(settings, certificate=certificate)
    except ServiceError as error:
        problems.append(Problem(str(error), _REMEDY))
    return Finding("settings", [", ".join(shown) or "defaults"], problems)


def ports(settings: Settings) -> Finding:
    """Listen on each port for a moment, and tell how many processes would."""
    states, problems = [], []
    count = process_count.resolved(settings).api_processes
    processes = f"HTTP and gRPC by {count} process{'es' if count > 1 else ''}"
    with ExitStack() as held:  # all at once: two of them may be the same
        for purpose, setting, unset in _PORTS:
            port = getattr(settings, setting)
            state = f"{port} is free" if port else unset
            # As serve listens for probes.
            alone = settings.model_copy(update={"probe_port": port, "grpc_port": 0})
            try:
                held.enter_context(listeners.probes(alone))
            except CannotListen as error:
                state = f"{port} is not free"
                problems.append(_taken(settings.host, port, setting, error.__cause__))
            states.append(f"{purpose}: {state}")
    return Finding("ports", [", ".join(states), processes], problems)


def _taken(host: str, port: int, setting: str, error: BaseException | None) -> Problem:
    option = "--" + setting.replace("_", "-")
    if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
        sentence = f"port {port} of {host} is in use"
        return Problem(sentence, f"end the process that listens there, or choose another {option}")
    reason = str(getattr(error, "strerror", error)).partition(" (")[0]  # Python adds the address
    return Problem(
        f"cannot bind port {port} of {host}: {reason}", f"choose another {option} or --host"
    )
