"""Errors as gRPC's statuses, as `service.api.problem_details` has those of HTTP."""

from collections.abc import Mapping

from grpc import StatusCode

from service import errors
from service.errors import ServiceError

STATUS: Mapping[type[ServiceError], StatusCode] = {
    errors.MalformedRequest: StatusCode.INVALID_ARGUMENT,
    errors.Unauthorized: StatusCode.UNAUTHENTICATED,
    errors.Forbidden: StatusCode.PERMISSION_DENIED,
    errors.UnknownModel: StatusCode.NOT_FOUND,
    errors.UnknownLabel: StatusCode.NOT_FOUND,
    errors.BodyTimeout: StatusCode.DEADLINE_EXCEEDED,
    errors.HeaderTimeout: StatusCode.DEADLINE_EXCEEDED,
    errors.Conflict: StatusCode.FAILED_PRECONDITION,
    errors.TooLarge: StatusCode.INVALID_ARGUMENT,
    errors.UnsupportedType: StatusCode.INVALID_ARGUMENT,
    errors.CompressedBody: StatusCode.INVALID_ARGUMENT,
    errors.UnreadableImage: StatusCode.INVALID_ARGUMENT,
    errors.InvalidParameter: StatusCode.INVALID_ARGUMENT,
    errors.MissingFile: StatusCode.INVALID_ARGUMENT,
    errors.CannotServe: StatusCode.FAILED_PRECONDITION,
    errors.RateLimited: StatusCode.RESOURCE_EXHAUSTED,
    errors.ClientDisconnected: StatusCode.CANCELLED,
    errors.HeadTooLarge: StatusCode.INVALID_ARGUMENT,
    errors.InferenceFailed: StatusCode.INTERNAL,
    errors.OutOfMemory: StatusCode.INTERNAL,
    errors.NotExplainable: StatusCode.UNIMPLEMENTED,
    errors.Overloaded: StatusCode.UNAVAILABLE,
    errors.NotReady: StatusCode.UNAVAILABLE,
    errors.DeadlineExceeded: StatusCode.DEADLINE_EXCEEDED,
    errors.CapacityExceeded: StatusCode.RESOURCE_EXHAUSTED,
}
