"""What a drill is played on: a Kafka, a Valkey, workers and a folder of models, all of this machine."""

import asyncio
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from ebbtide.ops.config.policy import PolicySettings
from ebbtide.ops.config.settings import Settings
from ebbtide.ops.stack.local import LocalStack
from ebbtide.ops.worker.connect import topic_specs
from ebbtide.ops.worker.process import WorkerProcess
from ebbtide.stream.kafka.topics import ensure_topics

SESSION_S, HEARTBEAT_S, POLL_S = 6.0, 1.0, 10.0
"""A worker that is killed is missed after six seconds; in production after `kafka.session_timeout_s`."""
STATIC_SESSION_S = 60.0
"""A static member is waited for as long as a restart may take."""
EVERYBODY = PolicySettings(enter=1e-6, exit=0.0)
"""Every customer who is scored opens an episode, once: a lost or repeated alert shows."""


class Scene(ExitStack):
    """In its block everything runs. base: its model and spec are used, its servers are not. static: the group knows
    each worker by name, and gives its partitions to nobody else while it restarts."""

    def __init__(
        self,
        base: Settings,
        folder: Path,
        say: Callable[[str], None],
        *,
        workers: int = 2,
        static: bool = False,
    ) -> None:
        super().__init__()
        self._base, self._folder, self._say = base, folder, say
        self._workers, self._static, self._started = workers, static, 0
        self.models = folder / "models"
        self.workers: list[WorkerProcess] = []

    def __enter__(self) -> Self:
        super().__enter__()
        shutil.copytree(self._base.model, self.models)
        self.stack = self.enter_context(LocalStack(progress=self._say))
        session_s = STATIC_SESSION_S if self._static else SESSION_S
        kafka = self._base.kafka.model_copy(
            update={
                "url": self.stack.kafka_url, "topic": "drill", "group": "drill", "session_timeout_s": session_s,
                "heartbeat_interval_s": HEARTBEAT_S, "poll_interval_max_s": max(POLL_S, session_s),
                "request_timeout_s": 5.0,
            }
        )  # fmt: skip
        redis = self._base.redis.model_copy(
            update={"url": self.stack.redis_url, "prefix": "drill:", "timeout_s": 2.0}
        )
        topics = self._base.topics.model_copy(
            update={
                "alerts": "drill-alerts",
                "dead_letters": "drill-dead",
                "scores": "drill-scores",
                "partitions": 4,
            }
        )
        self.settings = self._base.model_copy(
            update={
                "kafka": kafka, "redis": redis, "topics": topics, "policy": EVERYBODY, "alerts_from": "start",
                "model": self.models, "model_watch_s": 1.0,
            }
        )  # fmt: skip
        asyncio.run(ensure_topics(self.settings.kafka, topic_specs(self.settings)))
        self._say("starting workers")
        for _ in range(self._workers):
            self.add_worker()
        for worker in self.workers:
            worker.wait_ready()
        return self

    def add_worker(self) -> WorkerProcess:
        """One more; it is not ready yet."""
        self.workers.append(self._start(len(self.workers)))
        return self.workers[-1]

    def roll(self) -> None:
        """One worker after the other: SIGTERM, and its successor until that one is ready."""
        for number, worker in enumerate(self.workers):
            worker.stop()
            self.workers[number] = self._start(number)
            self.workers[number].wait_ready()

    def hand_over(self) -> None:
        """One static member after the other: a successor of the same name starts beside it, and takes its place in the
        group when it can score. The one before it hears so from Kafka, and ends."""
        for number, worker in enumerate(self.workers):
            successor = self._start(number)
            successor.wait_ready()
            self.workers[number] = successor
            worker.stop()

    def _start(self, number: int) -> WorkerProcess:
        folder = self._folder / f"worker-{self._started}"
        folder.mkdir()
        self._started += 1
        kafka = self.settings.kafka
        if self._static:
            kafka = kafka.model_copy(update={"instance": f"worker-{number}"})
        return self.enter_context(WorkerProcess(self.settings.model_copy(update={"kafka": kafka}), folder))
