"""How to use a service that has become ready, for a user who has started it on a terminal."""

import ipaddress
import os
import shlex
from pathlib import Path

from service.models.store import BUNDLED, Store
from service.settings import Settings


def text(settings: Settings, port: int, model_store: Store) -> str:
    """Return the address, a curl command that works as it stands, and the page's address."""
    address = url(settings, port)
    image = shlex.quote(f"file=@{_shown(example(settings, model_store))}")
    keyed = settings.api_keys_file or settings.api_key_hashes
    key = '-H "X-API-Key: $GOOGLENET_KEY" ' if keyed else ""
    return (
        f"\nReady at {address}\n"
        f"Classify an image:  curl {key}-F {image} {address}/classify\n"
        f"Try it on a page:   {address}/\n\n"
    )


def url(settings: Settings, port: int) -> str:
    """Return the service's address on this machine, without a slash at its end."""
    scheme = "https" if settings.tls_cert_file else "http"
    return f"{scheme}://{_reachable(settings.host)}:{port}"


def example(settings: Settings, model_store: Store) -> Path:
    """Return an image of the checkout or of the installed package that suits the default model."""
    is_digits = settings.model == BUNDLED
    return model_store.builtin / ("digits/held_out/7.png" if is_digits else "clock.png")


def _reachable(host: str) -> str:
    """Return a host to connect to: this machine for every address, IPv6 in brackets."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if address.is_unspecified:
        return "127.0.0.1"
    return f"[{host}]" if address.version == 6 else host  # noqa: PLR2004 - IPv6


def _shown(path: Path) -> Path:
    """Return a path relative to the working directory if it is below it."""
    here = Path(os.path.curdir).resolve()
    return path.relative_to(here) if path.is_relative_to(here) else path
