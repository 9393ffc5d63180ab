"""The settings: names, defaults, bounds and descriptions."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from service.fetch_settings import FetchSettings
from service.listening_settings import ListeningSettings

FixedPlanName = Literal["single", "ten", "paper", "dense"]
PlanName = Literal[FixedPlanName, "adaptive", "adaptive:paper"]
AUTO: Literal["auto"] = "auto"  # the most views that the deadline of a request allows
Views = Literal[PlanName, "auto"]
Precision = Literal["auto", "float32", "bfloat16", "float16", "int8"]
LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["auto", "text", "json"]

MEBIBYTE = 1024 * 1024
BACKGROUND_SHARE = 0.25  # of device time
PLAIN = r"[a-z0-9_]{1,64}"  # a model
NAME = PLAIN + r"(@[A-Za-z0-9._-]{1,32})?"  # a model, or one version of it
MEMBERS = 16  # most models of an ensemble
MODEL = rf"{NAME}(,{NAME}){{0,{MEMBERS - 1}}}"  # a model or an ensemble
_ADAPTER = "(huggingface|torchserve|kserve-v1)"


class Settings(FetchSettings, ListeningSettings):
    """Options of the command line, or `GOOGLENET_...` environment variables; frozen."""

    model_config = SettingsConfigDict(env_prefix="GOOGLENET_", frozen=True, extra="forbid")

    model: Annotated[
        str,
        Field(
            pattern=rf"^{MODEL}$",
            description="default model; several, separated by commas, are averaged",
        ),
    ] = "googlenet"
    additional_models: Annotated[
        str | None,
        Field(
            pattern=rf"^{MODEL}(:{MODEL})*$",
            description="more models, separated by colons, which requests select by `model=`",
        ),
    ] = None
    shadow: Annotated[
        str | None,
        Field(pattern=rf"^{MODEL}$", description="shadow model: only its predictions are compared"),
    ] = None
    shadow_share: Annotated[
        float,
        Field(ge=0, le=1, description="share of the requests that the shadow model also gets"),
    ] = 0.1
    max_models: Annotated[
        int,
        Field(ge=1, le=64, description="most models loaded; over it: 507"),
    ] = 4
    max_model_bytes: Annotated[
        int,
        Field(
            ge=0,
            description="memory limit of all workers, a new one included; over it: 507; 0: none",
        ),
    ] = 0
    model_poll_seconds: Annotated[
        float,
        Field(
            ge=0,
            le=86400,
            description="interval of polling the store for changed models; 0: only on SIGHUP",
        ),
    ] = 0.0
    download_weights: Annotated[
        bool,
        Field(description="download missing weights; if no, exit with an error instead"),
    ] = True
    require_model: Annotated[
        bool,
        Field(
            description="exit if the model cannot be downloaded or a GOOGLENET_... variable is"
            " unknown; if no, serve the bundled model or log a warning"
        ),
    ] = False
    views: Annotated[
        PlanName,
        Field(description="default view plan of a request; more views take more time"),
    ] = "adaptive"
    device: Annotated[
        str,
        Field(
            pattern=r"^(auto|cpu|cuda(:\d+)?|torch-cpu)$",
            description="auto (all GPUs, or the CPU without one), cpu, cuda, cuda:N, or torch-cpu"
            " (PyTorch on the CPU instead of OpenVINO)",
        ),
    ] = "auto"
    precision: Annotated[
        Precision,
        Field(
            description="number format of inference; auto: bfloat16 on a CPU and float16 on a GPU"
            " that support it, if results agree with float32; else float32"
        ),
    ] = "auto"
    model_store: Annotated[
        Path | None,
        Field(description="folder of models; default: the checkout's, or the user's cache"),
    ] = None
    timeout_seconds: Annotated[
        float,
        Field(
            ge=0.01, le=600, description="default and longest deadline of a request, for admission"
        ),
    ] = 10.0
    max_batch: Annotated[
        int,
        Field(ge=0, le=256, description="most rows in a batch; 0: 4 a core of a CPU, 64 on a GPU"),
    ] = 0
    cpu_threads: Annotated[
        int,
        Field(ge=0, le=1024, description="CPU threads for inference; 0: all available cores"),
    ] = 0
    max_body_bytes: Annotated[
        int,
        Field(ge=1024, le=1024 * MEBIBYTE, description="largest request body; over it: 413"),
    ] = 20 * MEBIBYTE
    max_pixels: Annotated[
        int,
        Field(ge=1, le=178_000_000, description="most pixels of an image; over it: 413"),
    ] = 50_000_000
    heic: Annotated[
        bool,
        Field(description="accept HEIC images; needs the extra `heic`"),
    ] = False
    decode_timeout_seconds: Annotated[
        float,
        Field(gt=0, le=600, description="most CPU time for decoding an image; over it: 413"),
    ] = 10.0
    max_images_per_request: Annotated[
        int,
        Field(ge=1, le=1024, description="most images in a request; over it: 413"),
    ] = 16
    max_inflight_body_bytes: Annotated[
        int,
        Field(
            ge=1024,
            description="memory for request bodies in flight, with their copies; over it: 503",
        ),
    ] = 256 * MEBIBYTE
    upload_timeout_seconds: Annotated[
        float,
        Field(gt=0, le=600, description="longest time to receive a request body; over it: 408"),
    ] = 30.0
    header_timeout_seconds: Annotated[
        float,
        Field(gt=0, le=600, description="longest time to receive request headers; over it: 408"),
    ] = 10.0
    max_header_bytes: Annotated[
        int,
        Field(ge=1024, le=MEBIBYTE, description="largest request headers; over it: 431"),
    ] = 64 * 1024
    send_timeout_seconds: Annotated[
        float,
        Field(gt=0, le=600, description="longest time that a client may stop reading a response"),
    ] = 30.0
    keep_alive_seconds: Annotated[
        int,
        Field(ge=1, le=3600, description="longest idle time of a connection between two requests"),
    ] = 75
    max_connections: Annotated[
        int,
        Field(ge=0, description="most open connections; 0: as the limit of open files allows"),
    ] = 10_000
    backlog: Annotated[
        int, Field(ge=1, le=65535, description="most connections that wait to be accepted")
    ] = 2048
    max_queue_bytes: Annotated[
        int,
        Field(ge=1024, description="memory for queued decoded images, by model; over it: 503"),
    ] = 512 * MEBIBYTE
    cache_bytes: Annotated[
        int,
        Field(ge=0, description="memory for the result cache of a model; 0: no cache"),
    ] = 0
    background_share: Annotated[
        float,
        Field(
            ge=0.01,
            le=0.5,
            description="share of device time for background requests (`Priority: u=7`) under load",
        ),
    ] = BACKGROUND_SHARE
    decode_threads: Annotated[
        int,
        Field(ge=0, le=256, description="threads that decode images, by model; 0: one a core"),
    ] = 0
    stall_seconds: Annotated[
        float,
        Field(gt=0, description="longest time of a running batch; over it liveness fails"),
    ] = 60.0
    drain_seconds: Annotated[
        float,
        Field(
            ge=0, le=600, description="time after SIGTERM in which new requests are still accepted"
        ),
    ] = 0.0
    grace_seconds: Annotated[
        float,
        Field(gt=0, le=600, description="longest wait for requests in flight after that"),
    ] = 30.0
    adapters: Annotated[
        str | None,
        Field(
            pattern=rf"^{_ADAPTER}(,{_ADAPTER})*$",
            description="other servers' APIs to serve, too, separated by commas; default: none",
        ),
    ] = None
    api_keys_file: Annotated[
        Path | None, Field(description="file of API keys; default: no authentication")
    ] = None
    api_key_hashes: Annotated[
        str | None,
        Field(
            pattern=r"^[A-Za-z0-9_-]{1,64}:[0-9A-Fa-f]{64}(,[A-Za-z0-9_-]{1,64}:[0-9A-Fa-f]{64})*$",
            description="API keys without rate limits: NAME:SHA256,NAME:SHA256",
        ),
    ] = None
    cors_origins: Annotated[
        str | None,
        Field(
            pattern=r"^(\*|https?://[^\s,/]+(,https?://[^\s,/]+)*)$",
            description="allowed CORS origins, separated by commas, or *; default: none",
        ),
    ] = None
    cors_headers: Annotated[
        str | None,
        Field(
            pattern=r"^[A-Za-z0-9-]+(,[A-Za-z0-9-]+)*$",
            description="additional allowed CORS request headers, separated by commas",
        ),
    ] = None
    log_level: Annotated[LogLevel, Field(description="lowest level that is logged")] = "info"
    log_format: Annotated[
        LogFormat, Field(description="text or JSON lines; auto: text on a terminal, else JSON")
    ] = "auto"

    @property
    def models(self) -> tuple[str, ...]:
        """The models of `model`, in order."""
        return tuple(self.model.split(","))

    @property
    def served(self) -> tuple[str, ...]:
        """All models or ensembles to serve, the default first."""
        additional = self.additional_models.split(":") if self.additional_models else []
        shadow = [self.shadow] if self.shadow else []
        return tuple(dict.fromkeys([self.model, *additional, *shadow]))
