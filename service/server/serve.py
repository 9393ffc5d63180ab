"""The serve command: check the options, then serve in this process or in several."""

import logging
import os
from typing import Any

from service.api.tls import Certificate
from service.errors import Unreachable, WrongOption
from service.fetch_settings import networks
from service.models import store
from service.models.store import Store
from service.server import (
    app,
    listeners,
    log_config,
    process_count,
    supervisor,
    unknown_variables,
    weights_download,
)
from service.server.http_server import HttpServer
from service.server.startup import Startup
from service.serving.metrics.metrics import Metrics
from service.settings import Settings

logger = logging.getLogger(__name__)


def serve(settings: Settings, _: dict[str, Any]) -> int:
    """Serve until the process is signalled; downloads missing weights first."""
    log_config.configure(settings)
    certificate = check(settings)
    model_store = store.locate(settings.model_store)
    if settings.download_weights and (
        status := weights_download.download_first(model_store, settings.models)
    ):
        if settings.require_model or status != Unreachable.exit_status:
            return status
        logger.warning("cannot download %s, serving the bundled model", settings.model)
        settings = settings.model_copy(update={"model": store.BUNDLED})
    settings = process_count.resolved(settings)
    if settings.api_processes > 1:
        return supervisor.run(settings)
    return _serve_alone(settings, model_store, certificate)


def _serve_alone(settings: Settings, model_store: Store, certificate: Certificate | None) -> int:
    """Serve in this process."""
    metrics, server = Metrics(), HttpServer(settings)
    startup = Startup(settings, model_store, server.stop, server.port)
    core = app.create_core(settings, startup.load, metrics, startup.gave_up, startup.serves)
    application = app.create_app(
        settings, core=core, is_leaving=server.is_leaving, certificate=certificate
    )
    with (
        listeners.probes(settings) as probe_listener,
        listeners.dual_stack(settings) as sockets,
    ):
        server.run(application, metrics, sockets, probe_listener)
    return int(startup.has_failed)


def check(settings: Settings) -> Certificate | None:
    """Read the certificate; raises `WrongOption` for settings and variables that are wrong."""
    unknown_variables.check(os.environ, is_strict=settings.require_model)
    _check_proxies(settings.trusted_proxies)
    return Certificate.read(settings)


def _check_proxies(trusted: str) -> None:
    """Raise `WrongOption` for an invalid address or network, which uvicorn would ignore."""
    try:
        networks("" if trusted == "*" else trusted)
    except ValueError as error:
        raise WrongOption(f"--trusted-proxies: {error}") from error
