"""The settings of listening: addresses, ports, processes, TLS and proxies."""

from pathlib import Path
from typing import Annotated

from pydantic import Field
from pydantic_settings import BaseSettings


class ListeningSettings(BaseSettings):
    """Where the service listens, and what is between it and its clients; a part of `Settings`."""

    host: Annotated[
        str, Field(description="address to listen on; :: is every IPv4 and IPv6 address")
    ] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535, description="port to listen on; 0: a free one")] = (
        8000
    )
    probe_port: Annotated[
        int,
        Field(ge=0, le=65535, description="separate port for probes and metrics; 0: the main port"),
    ] = 0
    grpc_port: Annotated[
        int,
        Field(ge=0, le=65535, description="port for gRPC (Open Inference Protocol); 0: no gRPC"),
    ] = 0
    api_processes: Annotated[
        int, Field(ge=0, le=64, description="processes for HTTP and gRPC; 0: by the machine")
    ] = 0
    tls_cert_file: Annotated[
        Path | None,
        Field(description="TLS certificate chain of HTTP and gRPC, in PEM; default: no TLS"),
    ] = None
    tls_key_file: Annotated[
        Path | None,
        Field(description="its private key, in PEM; default: in the certificate's file"),
    ] = None
    tls_client_ca_file: Annotated[
        Path | None,
        Field(description="CAs, in PEM, of required client certificates; default: none required"),
    ] = None
    trusted_proxies: Annotated[
        str,
        Field(
            description="IP addresses and networks, separated by commas, of proxies whose"
            " X-Forwarded-Proto is used, or * for all"
        ),
    ] = "127.0.0.1,::1"
    root_path: Annotated[
        str | None,
        Field(
            pattern=r"^(/[^/?#\s]+)+$",
            description="path prefix that a proxy removes; default: none",
        ),
    ] = None
