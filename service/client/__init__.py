"""A Python client of the service, blocking (`Client`) and for asyncio (`AsyncClient`)."""

from service.client.async_client import AsyncClient
from service.client.blocking_client import Client
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
from service.client.image_input import ImageInput
from service.client.results import (
    Box,
    Embedding,
    Explanation,
    HeatMap,
    LabelSet,
    Member,
    Model,
    Models,
    Prediction,
    Ranking,
    SpecificLabel,
)

__all__ = [
    "AsyncClient",
    "Box",
    "Client",
    "ClientError",
    "Embedding",
    "Explanation",
    "Failed",
    "HeatMap",
    "ImageInput",
    "LabelSet",
    "Member",
    "Model",
    "Models",
    "Prediction",
    "Ranking",
    "Rejected",
    "SpecificLabel",
    "TimedOut",
    "Unauthorized",
    "Unavailable",
    "Unreachable",
    "Unreadable",
]
