"""What can go wrong, in words for the person who has to act on it.

Every error is one sentence, and has a `code`, a word for machines. None of them knows an HTTP
status: `service.api.problem_details` maps each class to one, once.
"""

from typing import ClassVar


class ServiceError(Exception):
    """Anything the service refuses or fails to do; `str(error)` is the sentence to show."""

    code: ClassVar[str] = "internal"
    exit_status: ClassVar[int] = 1  # of a command that ends with it


class MalformedRequest(ServiceError):
    """The request's framing is broken, its body is empty, or an image in it is."""

    code = "malformed"


class MissingFile(ServiceError):
    """The form has no part named `file`."""

    code = "missing_file"


class TooLarge(ServiceError):
    """The body, an image or the number of images is over its limit."""

    code = "too_large"


class BodyTimeout(ServiceError):
    """The request's body took too long to arrive."""

    code = "slow_upload"


class HeaderTimeout(ServiceError):
    """The request's head took too long to arrive."""

    code = "slow_head"


class HeadTooLarge(ServiceError):
    """The request's head is over its limit, or has over 100 headers."""

    code = "head_too_large"


class UnsupportedType(ServiceError):
    """The bytes are no JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF, or one of a kind not read."""

    code = "unsupported_type"


class CompressedBody(UnsupportedType):
    """The request's body has a Content-Encoding; the service takes none."""


class UnreadableImage(ServiceError):
    """The image is broken or cut short."""

    code = "unreadable_image"


class InvalidParameter(ServiceError):
    """A parameter is unknown, or has a value that it cannot have."""

    code = "invalid_parameter"


class Unauthorized(ServiceError):
    """The service has API keys, and the request brings none of them."""

    code = "unauthorized"


class Forbidden(ServiceError):
    """The request's key may not manage models; where there are no keys, nobody may."""

    code = "forbidden"


class UnknownModel(ServiceError):
    """No model of that name is served or, to be loaded, in the store."""

    code = "unknown_model"


class UnknownLabel(ServiceError):
    """The model has no class of that name, or several."""

    code = "unknown_label"


class Conflict(ServiceError):
    """A model is being loaded already, or the one to be let go is the default."""

    code = "conflict"


class NotExplainable(ServiceError):
    """The model has no class activation maps, so it cannot be explained."""

    code = "not_explainable"


class CannotServe(ServiceError):
    """The model that was to be loaded cannot be served; what was served still is."""

    code = "cannot_serve"


class CapacityExceeded(ServiceError):
    """One model more would be one too many, or would take too much memory."""

    code = "no_room"


class Unavailable(ServiceError):
    """Not now; the same request may be answered after `retry_after` seconds."""

    def __init__(self, sentence: str, *, retry_after: float) -> None:
        super().__init__(sentence)
        self.retry_after = retry_after


class Overloaded(Unavailable):
    """More work waits than can be done by the request's deadline, or fits into memory."""

    code = "overloaded"


class NotReady(Unavailable):
    """The model is still being loaded, warmed and timed, or could not be loaded."""

    code = "not_ready"


class RateLimited(Unavailable):
    """The key's requests of this second, minute, hour or day are used up."""

    code = "rate_limited"


class DeadlineExceeded(ServiceError):
    """The answer did not, or could never, come before the request's deadline."""

    code = "deadline_exceeded"


class InferenceFailed(ServiceError):
    """The device failed while it worked on this request's batch."""

    code = "inference_failed"


class OutOfMemory(InferenceFailed):
    """The device has no memory for a batch of this size; it may have for smaller ones."""


class ClientDisconnected(ServiceError):
    """The caller hung up before the answer was there."""

    code = "caller_gone"


class ModelError(ServiceError):
    """A model cannot be found, fetched, read or served."""


class Unreachable(ModelError):
    """A model's weights cannot be downloaded now: there is no network, or nobody answers."""

    exit_status = 69  # EX_UNAVAILABLE of BSD's sysexits.h


class BadWeights(ModelError):
    """A weights file is truncated, foreign, hostile or does not fit its architecture."""


class MissingWeights(ModelError):
    """A model is described in the store but its weights are not there yet."""


class NotConverted(ModelError):
    """A model has no usable OpenVINO file, or its network cannot be converted to one."""


class WrongOption(ServiceError):
    """An option is unknown to uvicorn or kept from it, cannot be used, or contradicts another."""

    exit_status = 2  # as of any wrong call


class CannotListen(ServiceError):
    """An address to listen on is taken, or not this machine's."""


class BulkError(ServiceError):
    """Images cannot be found, or their results cannot be kept."""


class BenchError(ServiceError):
    """There is nothing to measure, or it cannot be reached."""


class KeysError(ServiceError):
    """The API keys cannot be read, or are not what they should be."""
