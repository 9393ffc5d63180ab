"""The table of errors to statuses: of HTTP, and of gRPC by name, which needs no gRPC library."""

from collections.abc import Mapping
from typing import NamedTuple

from service import errors
from service.errors import ServiceError

CLIENT_CLOSED_REQUEST = 499  # nginx's; no client reads it, the metrics count it


class Status(NamedTuple):
    """What an error is answered with; `grpc` is the name of a `grpc.StatusCode`."""

    http: int
    grpc: str


STATUS: Mapping[type[ServiceError], Status] = {
    errors.MalformedRequest: Status(400, "INVALID_ARGUMENT"),
    errors.Unauthorized: Status(401, "UNAUTHENTICATED"),
    errors.Forbidden: Status(403, "PERMISSION_DENIED"),
    errors.UnknownModel: Status(404, "NOT_FOUND"),
    errors.UnknownLabel: Status(404, "NOT_FOUND"),
    errors.BodyTimeout: Status(408, "DEADLINE_EXCEEDED"),
    errors.HeaderTimeout: Status(408, "DEADLINE_EXCEEDED"),
    errors.Conflict: Status(409, "FAILED_PRECONDITION"),
    errors.NotCalibrated: Status(409, "FAILED_PRECONDITION"),
    errors.TooLarge: Status(413, "INVALID_ARGUMENT"),
    errors.UnsupportedType: Status(415, "INVALID_ARGUMENT"),
    errors.CompressedBody: Status(415, "INVALID_ARGUMENT"),
    errors.UnreadableImage: Status(422, "INVALID_ARGUMENT"),
    errors.InvalidParameter: Status(422, "INVALID_ARGUMENT"),
    errors.NoBroaderLabels: Status(422, "INVALID_ARGUMENT"),
    errors.MissingFile: Status(422, "INVALID_ARGUMENT"),
    errors.FetchDisabled: Status(422, "FAILED_PRECONDITION"),
    errors.FetchRefused: Status(422, "INVALID_ARGUMENT"),
    errors.FetchFailed: Status(422, "FAILED_PRECONDITION"),
    errors.CannotServe: Status(422, "FAILED_PRECONDITION"),
    errors.RateLimited: Status(429, "RESOURCE_EXHAUSTED"),
    errors.HeadTooLarge: Status(431, "INVALID_ARGUMENT"),
    errors.ClientDisconnected: Status(CLIENT_CLOSED_REQUEST, "CANCELLED"),
    errors.InferenceFailed: Status(500, "INTERNAL"),
    errors.OutOfMemory: Status(500, "INTERNAL"),
    errors.NotExplainable: Status(501, "UNIMPLEMENTED"),
    errors.NoFeatures: Status(501, "UNIMPLEMENTED"),
    errors.Overloaded: Status(503, "UNAVAILABLE"),
    errors.NotReady: Status(503, "UNAVAILABLE"),
    errors.Interrupted: Status(503, "UNAVAILABLE"),
    errors.DeadlineExceeded: Status(504, "DEADLINE_EXCEEDED"),
    errors.CapacityExceeded: Status(507, "RESOURCE_EXHAUSTED"),
}
HTTP = frozenset(status.http for status in STATUS.values())
