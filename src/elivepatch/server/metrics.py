# SPDX-License-Identifier: GPL-2.0-or-later
"""The metrics of the server, in Prometheus' text format; docs/operator.md lists them."""

from __future__ import annotations

import shutil
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from elivepatch.server.events import EventStreams
from elivepatch.server.service import Service


class _State(Collector):
    """What is read when it is asked for, because the database and the disk know it best."""

    def __init__(self, service: Service, streams: EventStreams) -> None:
        self._service = service
        self._streams = streams

    def collect(self) -> Iterable[Metric]:
        """Read it."""
        builds = GaugeMetricFamily("elivepatch_builds", "Builds in each state.", labels=["status"])
        for status, count in self._service.database.counts().items():
            builds.add_metric([status.value], count)
        yield builds
        settings = self._service.settings
        yield GaugeMetricFamily("elivepatch_jobs", "Builds that may run at once.", value=settings.jobs)
        yield GaugeMetricFamily("elivepatch_event_streams", "Open event streams.", value=self._streams.open)
        free = shutil.disk_usage(settings.data).free
        yield GaugeMetricFamily("elivepatch_disk_free_bytes", "Free disk where builds are kept.", value=free)
        problems = len(self._service.engine.problems())
        yield GaugeMetricFamily("elivepatch_engine_problems", "What keeps the job engine from working.", value=problems)


class Metrics:
    """The metrics of one server."""

    def __init__(self, service: Service, streams: EventStreams) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_Described(_State(service, streams)))
        self._answers = Counter(
            "elivepatch_http_responses", "Answers, by class of status.", ["status"], registry=self._registry
        )

    def answered(self, status: int) -> None:
        """Count an answer."""
        self._answers.labels(f"{status // 100}xx").inc()

    def text(self) -> bytes:
        """All of them."""
        return generate_latest(self._registry)


class _Described(Collector):
    """A collector that is not read when it is registered."""

    def __init__(self, collector: Collector) -> None:
        self._collector = collector

    def collect(self) -> Iterable[Metric]:
        """Read it."""
        return self._collector.collect()

    def describe(self) -> Iterable[Metric]:
        """Nothing ahead of time."""
        return ()
