"""The service from Python: a client that waits its turn, and one for an event loop."""

from service.client.clients import AsyncClient, Client
from service.client.errors import (
    ClientError,
    Failed,
    Rejected,
    TimedOut,
    Unauthorized,
    Unavailable,
    Unreachable,
    Unreadable,
)
from service.client.reading import ImageInput
from service.client.results import (
    Box,
    Explanation,
    HeatMap,
    Member,
    Model,
    Models,
    Prediction,
    Ranking,
)

__all__ = [
    "AsyncClient",
    "Box",
    "Client",
    "ClientError",
    "Explanation",
    "Failed",
    "HeatMap",
    "ImageInput",
    "Member",
    "Model",
    "Models",
    "Prediction",
    "Ranking",
    "Rejected",
    "TimedOut",
    "Unauthorized",
    "Unavailable",
    "Unreachable",
    "Unreadable",
]
