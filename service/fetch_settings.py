"""The settings of fetching images by URL."""

import ipaddress
from collections.abc import Sequence
from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_HOST = r"((\*\.)?[a-z0-9._-]+|\[[0-9a-f:.]+\])"


def networks(listed: str | None) -> Sequence[Network]:
    """Parse networks that are separated by commas; raises `ValueError`."""
    return [ipaddress.ip_network(it.strip()) for it in listed.split(",")] if listed else []


def _are_networks(listed: str) -> str:
    try:
        networks(listed)
    except ValueError as error:
        raise PydanticCustomError("networks", "{why}", {"why": str(error)}) from error
    return listed


class FetchSettings(BaseSettings):
    """Whether images are fetched by URL, and from where; a part of `Settings`."""

    fetch_images: Annotated[
        bool,
        Field(description="fetch images that JSON names by URL"),
    ] = False
    fetch_images_from: Annotated[
        str | None,
        Field(
            pattern=rf"^{_HOST}(,{_HOST})*$",
            description="the only hosts that images are fetched from, separated by commas;"
            " *.example.org is every host below example.org; default: any public host",
        ),
    ] = None
    fetch_images_ports: Annotated[
        str,
        Field(
            pattern=r"^[0-9]{1,5}(,[0-9]{1,5})*$",
            description="the only ports that images are fetched from, separated by commas",
        ),
    ] = "80,443"
    fetch_images_networks: Annotated[
        Annotated[str, AfterValidator(_are_networks)] | None,
        Field(
            description="networks that are no public ones and that images are fetched from, too,"
            " separated by commas (10.1.0.0/16); default: none"
        ),
    ] = None
    fetch_timeout_seconds: Annotated[
        float,
        Field(gt=0, le=600, description="longest time to fetch an image by URL; over it: 422"),
    ] = 10.0
