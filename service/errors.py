"""What can go wrong, in words for the person who has to act on it.

Every error is one sentence, and has a `code`, a word for machines. None of them knows an HTTP
status: `service.api.problems` maps each class to one, once.
"""

from typing import ClassVar


class ServiceError(Exception):
    """Anything the service refuses or fails to do; `str(error)` is the sentence to show."""

    code: ClassVar[str] = "internal"
    exit_status: ClassVar[int] = 1  # of a command that ends with it


class MalformedRequest(ServiceError):
    """The request's framing is broken or its body is empty."""

    code = "malformed"


class MissingFile(ServiceError):
    """The request is well formed but holds no picture."""

    code = "missing_file"


class TooLarge(ServiceError):
    """A body, a picture or a number of parts is over its limit."""

    code = "too_large"


class SlowUpload(ServiceError):
    """The request's body did not arrive in time."""

    code = "slow_upload"


class SlowHead(ServiceError):
    """The request's head did not arrive in time."""

    code = "slow_head"


class HeadTooLarge(ServiceError):
    """The request's head has too many bytes or too many headers."""

    code = "head_too_large"


class UnsupportedType(ServiceError):
    """The bytes are not one of the accepted picture formats."""

    code = "unsupported_type"


class UnreadableImage(ServiceError):
    """The bytes begin like an accepted format and cannot be decoded."""

    code = "unreadable_image"


class InvalidParameter(ServiceError):
    """A parameter has a value the service does not know."""

    code = "invalid_parameter"


class Unauthorized(ServiceError):
    """The request brings no key, or one that nobody has."""

    code = "unauthorized"


class Forbidden(ServiceError):
    """The request's key is not one that may do this."""

    code = "forbidden"


class UnknownModel(ServiceError):
    """No model of that name is served, or in the store."""

    code = "unknown_model"


class UnknownLabel(ServiceError):
    """The model has no class of that name, or several."""

    code = "unknown_label"


class Conflict(ServiceError):
    """What is asked for cannot be as things stand."""

    code = "conflict"


class NotExplainable(ServiceError):
    """The model is of a kind that has no class activation maps."""

    code = "not_explainable"


class CannotServe(ServiceError):
    """A model that was to be loaded cannot be served."""

    code = "cannot_serve"


class NoRoom(ServiceError):
    """So many models, or so much memory, may not be served side by side."""

    code = "no_room"


class Unavailable(ServiceError):
    """Not now; the same request may be answered after `retry_after` seconds."""

    def __init__(self, sentence: str, *, retry_after: float) -> None:
        super().__init__(sentence)
        self.retry_after = retry_after


class Overloaded(Unavailable):
    """More work is queued than can be done by the request's deadline."""

    code = "overloaded"


class NotReady(Unavailable):
    """The model is still being loaded, warmed or timed."""

    code = "not_ready"


class RateLimited(Unavailable):
    """A key's requests in some length of time are used up."""

    code = "rate_limited"


class DeadlineExceeded(ServiceError):
    """The answer did not, or could never, come before the request's deadline."""

    code = "deadline_exceeded"


class InferenceFailed(ServiceError):
    """The device failed while it worked on this request's batch."""

    code = "inference_failed"


class OutOfMemory(InferenceFailed):
    """The device has no memory for a batch of this size; it may have for smaller ones."""


class CallerGone(ServiceError):
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


class WrongOption(ServiceError):
    """An option for uvicorn is unknown, ours, or names what cannot be used."""

    exit_status = 2  # as of any wrong call


class CannotListen(ServiceError):
    """An address to listen on is taken, or not this machine's."""


class BulkError(ServiceError):
    """Pictures cannot be found, or their results cannot be kept."""


class BenchError(ServiceError):
    """There is nothing to measure, or it cannot be reached."""


class KeysError(ServiceError):
    """The API keys cannot be read, or are not what they should be."""
