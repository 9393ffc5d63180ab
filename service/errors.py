"""The errors of the service: a sentence for people, and a `code` for machines.

`service.api.statuses` maps each class to its HTTP and gRPC status.
"""

from collections.abc import Callable
from typing import ClassVar

LOADING_RETRY = 5.0  # seconds; the time of a first load is not known


class ServiceError(Exception):
    """An error whose `str()` is the sentence to show; the fault is the server's, or a command's."""

    code: ClassVar[str] = "internal"
    exit_status: ClassVar[int] = 1  # of a command


class ClientError(ServiceError):
    """An error that is the client's fault: the request has to change, or to be sent less often."""


class MalformedRequest(ClientError):
    """The request is not valid HTTP, or its body or an image in it is empty."""

    code = "malformed"


class MissingFile(ClientError):
    """The form has no part named `file`."""

    code = "missing_file"


class TooLarge(ClientError):
    """The body, an image or the number of images is over its limit."""

    code = "too_large"


class BodyTimeout(ClientError):
    """The body of the request took too long to arrive."""

    code = "slow_upload"


class HeaderTimeout(ClientError):
    """The headers of the request took too long to arrive."""

    code = "slow_head"


class HeadTooLarge(ClientError):
    """The headers of the request are over their limit in bytes, or are over 100."""

    code = "head_too_large"


class UnsupportedType(ClientError):
    """The image is not a JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF, or of an unsupported variant."""

    code = "unsupported_type"


class CompressedBody(UnsupportedType):
    """The body of the request has a Content-Encoding; none is supported."""


class UnreadableImage(ClientError):
    """The image is corrupt or truncated."""

    code = "unreadable_image"


class InvalidParameter(ClientError):
    """A parameter is unknown or has an invalid value."""

    code = "invalid_parameter"


class FetchDisabled(ClientError):
    """An image is given by URL, and the service does not fetch images (`--fetch-images`)."""

    code = "fetch_disabled"


class FetchRefused(ClientError):
    """The URL of an image is not one that the service fetches, whatever is behind it."""

    code = "fetch_refused"


class FetchFailed(ClientError):
    """The image could not be fetched from its URL; the same for every reason, not to tell more."""

    code = "fetch_failed"


class Unauthorized(ClientError):
    """The service requires an API key, and the request has no valid one."""

    code = "unauthorized"


class Forbidden(ClientError):
    """The API key may not manage models; a service without API keys has no model management."""

    code = "forbidden"


class UnknownModel(ClientError):
    """No model of that name is served or, to be loaded, in the model store."""

    code = "unknown_model"


class UnknownLabel(ClientError):
    """The model has no class of that name, or more than one."""

    code = "unknown_label"


class NoBroaderLabels(ClientError):
    """The model's labels have no broader ones in WordNet, so that `specificity` has no meaning."""

    code = "no_broader_labels"


class Conflict(ClientError):
    """The model is already being loaded, or the model to unload is the default."""

    code = "conflict"


class NotCalibrated(ClientError):
    """The model was not calibrated for label sets of that coverage and those views."""

    code = "not_calibrated"


class NotExplainable(ServiceError):
    """The model does not support class activation maps."""

    code = "not_explainable"


class NoFeatures(ServiceError):
    """The model has no features, or is an ensemble of several models, which have none together."""

    code = "no_features"


class CannotServe(ClientError):
    """The model could not be loaded; the models that were served still are."""

    code = "cannot_serve"


class CapacityExceeded(ServiceError):
    """Another model would be over the limit of models or of their memory."""

    code = "no_room"


class Unavailable(ServiceError):
    """The request cannot be served now; retry it after `retry_after` seconds."""

    def __init__(self, sentence: str, *, retry_after: float) -> None:
        super().__init__(sentence)
        self.retry_after = retry_after

    def __reduce__(
        self,
    ) -> tuple[Callable[..., "Unavailable"], tuple[type["Unavailable"], str, float]]:
        """Pickle: errors cross between processes."""
        return _unavailable, (type(self), str(self), self.retry_after)


def _unavailable(error: type[Unavailable], sentence: str, retry_after: float) -> Unavailable:
    return error(sentence, retry_after=retry_after)


class Overloaded(Unavailable):
    """The queue is too long for the request's deadline, or memory for requests is full."""

    code = "overloaded"


class NotReady(Unavailable):
    """The model is still being loaded and warmed up, or could not be loaded."""

    code = "not_ready"

    def __init__(self, sentence: str, *, retry_after: float = LOADING_RETRY) -> None:
        super().__init__(sentence, retry_after=retry_after)


class RateLimited(Unavailable, ClientError):
    """The API key is over its limit of requests in a second, minute, hour or day."""

    code = "rate_limited"


class DeadlineExceeded(ServiceError):
    """The request did not finish, or could not have finished, before its deadline."""

    code = "deadline_exceeded"


class InferenceFailed(ServiceError):
    """The device failed on the batch of this request."""

    code = "inference_failed"


class OutOfMemory(InferenceFailed):
    """The device has no memory for a batch of this size; smaller ones may fit."""


class Interrupted(NotReady, InferenceFailed):
    """The process that worked on the request has ended, through no fault of it; send it again."""


class ClientDisconnected(ClientError):
    """The client disconnected before the response was sent."""

    code = "caller_gone"


class ModelError(ServiceError):
    """A model cannot be found, downloaded, read or served."""


class Unreachable(ModelError):
    """The weights of a model cannot be downloaded: their server cannot be reached."""

    exit_status = 69  # EX_UNAVAILABLE of BSD's sysexits.h


class BadWeights(ModelError):
    """A weights file is truncated, unsafe, of an unknown format or of another architecture."""


class MissingWeights(ModelError):
    """A model has a manifest in the store but no weights."""


class NotConverted(ModelError):
    """A model has no usable OpenVINO file, or cannot be converted to one."""


class WrongOption(ServiceError):
    """An option or environment variable is unknown, not allowed, or conflicts with another."""

    exit_status = 2  # as argparse's


class CannotListen(ServiceError):
    """An address to listen on is in use, or is not of this machine."""


class BulkError(ServiceError):
    """Images cannot be found, or their results cannot be written."""


class BenchError(ServiceError):
    """There are no images to send, or the service to measure cannot be reached."""


class KeysError(ServiceError):
    """The API keys cannot be read or are invalid."""
