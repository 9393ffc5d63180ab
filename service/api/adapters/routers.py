"""The table of adapters, by the names that the setting `adapters` has."""

from collections.abc import Callable, Iterator, Mapping

from fastapi import APIRouter

from service.api.adapters import huggingface, kserve_v1, torchserve
from service.api.adapters.adapter import Adapter

ROUTERS: Mapping[str, Callable[[Adapter], APIRouter]] = {
    "huggingface": huggingface.router,
    "torchserve": torchserve.router,
    "kserve-v1": kserve_v1.router,
}


def chosen(adapter: Adapter) -> Iterator[APIRouter]:
    """Make the routes of the adapters that the settings name."""
    for name in filter(None, (adapter.settings.adapters or "").split(",")):
        yield ROUTERS[name](adapter)
