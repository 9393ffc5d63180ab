"""Every setting: its name, its default, its bounds and what it changes."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

PlanName = Literal["single", "ten", "paper", "dense"]
AUTO: Literal["auto"] = "auto"  # of a request: as many views as there is time for
Views = Literal["single", "ten", "paper", "dense", "auto"]
Precision = Literal["auto", "float32", "bfloat16", "float16", "int8"]
LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["auto", "text", "json"]

MEBIBYTE = 1024 * 1024
BACKGROUND_SHARE = 0.25  # of the time
PLAIN = r"[a-z0-9_]{1,64}"  # name of a model
NAME = PLAIN + r"(@[A-Za-z0-9._-]{1,32})?"  # the same, or one version of it
MEMBERS = 16  # most models that are averaged
MODEL = rf"{NAME}(,{NAME}){{0,{MEMBERS - 1}}}"  # several are averaged


class Settings(BaseSettings):
    """What a person may choose, read from arguments or `GOOGLENET_...` variables, once."""

    model_config = SettingsConfigDict(env_prefix="GOOGLENET_", frozen=True, extra="forbid")

    host: Annotated[
        str, Field(description="address to listen on; :: is every one, of IPv4 and of IPv6")
    ] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535, description="port to listen on; 0 picks one")] = 8000
    probe_port: Annotated[
        int,
        Field(ge=0, le=65535, description="port for probes and metrics alone; 0: they have none"),
    ] = 0
    grpc_port: Annotated[
        int,
        Field(ge=0, le=65535, description="port for the Open Inference Protocol's gRPC; 0: none"),
    ] = 0
    model: Annotated[
        str,
        Field(
            pattern=rf"^{MODEL}$",
            description="model to serve; several, separated by commas, are averaged",
        ),
    ] = "googlenet"
    additional_models: Annotated[
        str | None,
        Field(
            pattern=rf"^{MODEL}(:{MODEL})*$",
            description="models served beside it, separated by colons; requests ask by `model=`",
        ),
    ] = None
    shadow: Annotated[
        str | None,
        Field(
            pattern=rf"^{MODEL}$",
            description="candidate that is asked beside the model, its answers only compared",
        ),
    ] = None
    shadow_share: Annotated[
        float, Field(ge=0, le=1, description="for what share of the requests it is asked")
    ] = 0.1
    max_models: Annotated[
        int,
        Field(ge=1, le=64, description="most models served side by side; over it is a 507"),
    ] = 4
    max_model_bytes: Annotated[
        int,
        Field(
            ge=0,
            description="memory of all models' processes, one more too; over it a 507; 0: no bound",
        ),
    ] = 0
    model_poll_seconds: Annotated[
        float,
        Field(
            ge=0,
            le=86400,
            description="how often to look for models whose files changed; 0: on SIGHUP only",
        ),
    ] = 0.0
    download_weights: Annotated[
        bool,
        Field(description="fetch weights that are missing; else end and say how to get them"),
    ] = True
    require_model: Annotated[
        bool,
        Field(description="end if the model cannot be fetched; else the bundled one is served"),
    ] = False
    views: Annotated[
        PlanName,
        Field(description="views of an image when the request names none; more cost more"),
    ] = "ten"
    device: Annotated[
        str,
        Field(
            pattern=r"^(auto|cpu|cuda(:\d+)?|torch-cpu)$",
            description="auto (every GPU, else the CPU), cpu, cuda, cuda:N, or torch-cpu: PyTorch"
            " where the CPU's usual engine is OpenVINO",
        ),
    ] = "auto"
    precision: Annotated[
        Precision,
        Field(
            description="number format of the forward; auto: bfloat16 on a CPU and float16 on a "
            "GPU that compute in it, if it agrees with float32, else that"
        ),
    ] = "auto"
    model_store: Annotated[
        Path | None,
        Field(description="folder of models; default: the checkout's, else the user's cache"),
    ] = None
    timeout_seconds: Annotated[
        float,
        Field(ge=0.01, le=600, description="longest a request may take; what it is admitted by"),
    ] = 10.0
    max_batch: Annotated[
        int,
        Field(ge=0, le=256, description="most rows in one forward; 0: 16 on a CPU, 64 on a GPU"),
    ] = 0
    cpu_threads: Annotated[
        int,
        Field(ge=0, le=1024, description="cores a CPU computes on; 0: all that may be used"),
    ] = 0
    max_body_bytes: Annotated[
        int,
        Field(ge=1024, le=1024 * MEBIBYTE, description="largest request body; over it is a 413"),
    ] = 20 * MEBIBYTE
    max_pixels: Annotated[
        int,
        Field(
            ge=1,
            le=178_000_000,
            description="most pixels of an image that are decoded; over it a 413",
        ),
    ] = 50_000_000
    heic: Annotated[
        bool,
        Field(description="read HEIC, the images of iPhones; needs the extra of that name"),
    ] = False
    decode_timeout_seconds: Annotated[
        float,
        Field(gt=0, le=600, description="longest a core may decode one image; over it a 413"),
    ] = 10.0
    max_images_per_request: Annotated[
        int,
        Field(ge=1, le=1024, description="most images in one request; over it is a 413"),
    ] = 16
    max_inflight_body_bytes: Annotated[
        int,
        Field(
            ge=1024,
            description="memory for all uploads in flight, with their copies; over it is a 503",
        ),
    ] = 256 * MEBIBYTE
    upload_timeout_seconds: Annotated[
        float,
        Field(gt=0, le=600, description="longest a body may take to arrive; over it is a 408"),
    ] = 30.0
    header_timeout_seconds: Annotated[
        float,
        Field(gt=0, le=600, description="longest a head may take to arrive; over it is a 408"),
    ] = 10.0
    max_header_bytes: Annotated[
        int,
        Field(ge=1024, le=MEBIBYTE, description="largest head of a request; over it is a 431"),
    ] = 64 * 1024
    send_timeout_seconds: Annotated[
        float,
        Field(gt=0, le=600, description="longest an answer may wait for its caller to take it"),
    ] = 30.0
    keep_alive_seconds: Annotated[
        int,
        Field(ge=1, le=3600, description="longest a connection may rest between two requests"),
    ] = 75
    max_connections: Annotated[
        int,
        Field(ge=0, description="most open connections; 0: as many as files may be open"),
    ] = 10_000
    max_queue_bytes: Annotated[
        int,
        Field(
            ge=1024, description="memory for decoded images that wait, by model; over it is a 503"
        ),
    ] = 512 * MEBIBYTE
    cache_bytes: Annotated[
        int,
        Field(ge=0, description="memory for answers to images seen before, by model; 0: no cache"),
    ] = 0
    background_share: Annotated[
        float,
        Field(
            ge=0.01,
            le=0.5,
            description="of the time, what requests with `Priority: u=7` have while others wait",
        ),
    ] = BACKGROUND_SHARE
    decode_threads: Annotated[
        int,
        Field(ge=0, le=256, description="threads that decode images, by model; 0: one per core"),
    ] = 0
    stall_seconds: Annotated[
        float,
        Field(
            gt=0, description="a device that does not answer for longer fails the liveness probe"
        ),
    ] = 60.0
    drain_seconds: Annotated[
        float,
        Field(ge=0, le=600, description="after SIGTERM, how long requests are still let in"),
    ] = 0.0
    grace_seconds: Annotated[
        float,
        Field(gt=0, le=600, description="after that, how long a stop waits for those in flight"),
    ] = 30.0
    api_keys_file: Annotated[
        Path | None,
        Field(description="file of the API keys that may call; default: anybody may"),
    ] = None
    api_key_hashes: Annotated[
        str | None,
        Field(
            pattern=r"^[A-Za-z0-9_-]{1,64}:[0-9A-Fa-f]{64}(,[A-Za-z0-9_-]{1,64}:[0-9A-Fa-f]{64})*$",
            description="API keys without a file and without limits: NAME:SHA256,NAME:SHA256",
        ),
    ] = None
    cors_origins: Annotated[
        str | None,
        Field(
            pattern=r"^(\*|https?://[^\s,/]+(,https?://[^\s,/]+)*)$",
            description="origins whose pages may call, separated by commas, or *; default: none",
        ),
    ] = None
    cors_headers: Annotated[
        str | None,
        Field(
            pattern=r"^[A-Za-z0-9-]+(,[A-Za-z0-9-]+)*$",
            description="more request headers that those pages may send, separated by commas",
        ),
    ] = None
    log_level: Annotated[LogLevel, Field(description="least severe message that is logged")] = (
        "info"
    )
    log_format: Annotated[
        LogFormat,
        Field(description="text, or JSON lines; auto: text on a terminal, else JSON"),
    ] = "auto"

    @property
    def models(self) -> tuple[str, ...]:
        """The names in `model`, in order."""
        return tuple(self.model.split(","))

    @property
    def served(self) -> tuple[str, ...]:
        """What is served side by side, the default first."""
        additional = self.additional_models.split(":") if self.additional_models else []
        shadow = [self.shadow] if self.shadow else []
        return tuple(dict.fromkeys([self.model, *additional, *shadow]))
