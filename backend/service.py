"""What one API process holds: its settings, one connection pool, and the services that share it."""

from __future__ import annotations

from dataclasses import dataclass

from redis import Redis

from backend.connection import web_connection
from backend.jobs import JobQueue
from backend.metrics import Metrics
from backend.predictions import Predictions
from backend.settings import Settings


@dataclass(frozen=True)
class Service:
    settings: Settings
    connection: Redis
    predictions: Predictions
    metrics: Metrics

    @property
    def queue(self) -> JobQueue:
        return self.predictions.queue


def make_service(settings: Settings) -> Service:
    """Connects lazily: the API starts, and says so at /ready, while the queue server is still down."""
    connection = web_connection(settings)
    predictions = Predictions(connection, settings)
    return Service(settings, connection, predictions, Metrics(predictions.queue))
