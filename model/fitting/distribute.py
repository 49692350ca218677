"""Where a network is trained: one setting, the same network, loss and optimizer.

    auto               all GPUs of this machine, mirrored; the one there is; or the CPU
    one_device         the first GPU, or the CPU
    mirrored           all GPUs of this machine; without one, every logical CPU
    multi_worker       processes that TF_CONFIG names, each with its share of every batch
    parameter_server   TF_CONFIG's chief schedules steps on its workers, asynchronously; variables lie on its `ps`
    tpu                a TPU that the machine or TPU_NAME names

A step of several replicas is our own, since Keras 3's `fit` knows neither several processes nor parameter servers:

    batch ─split─▶ replica: gradient of its rows' share of the loss ─all-reduce: sum─▶ clip ─▶ AdamW

The sum is the whole batch's gradient, clipped as one process clips it. So the synchronous strategies compute what one
such step in one process does, but for the order of additions and the draws of dropout. Each process makes the same
examples and takes the same decisions; what they exchange are gradients. One device is left to Keras' own `fit`, with
the same loss: `row_losses`.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any, Literal

import keras
import tensorflow as tf

from ebbtide.model.errors import ModelError

Name = Literal["auto", "one_device", "mirrored", "multi_worker", "parameter_server", "tpu"]
SERVED = ("worker", "ps")
"""Tasks of a parameter server's cluster that wait for what the chief sends them."""


class ClusterUnfit(ModelError):
    """The strategy that was asked for does not fit this machine or TF_CONFIG. Nothing has been trained."""


@cache
def strategy_of(name: Name) -> tf.distribute.Strategy:
    """The strategy of a name, made once a process. `multi_worker` must be asked for before TensorFlow does anything.
    Raises ClusterUnfit."""
    gpus = (
        [device.name for device in tf.config.list_logical_devices("GPU")]
        if name in ("auto", "one_device")
        else []
    )
    match name:
        case "auto" if len(gpus) > 1:
            return tf.distribute.MirroredStrategy()
        case "auto" | "one_device":
            return tf.distribute.OneDeviceStrategy("/GPU:0" if gpus else "/CPU:0")
        case "mirrored":
            found = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
            return tf.distribute.MirroredStrategy([device.name for device in found])
        case "multi_worker":
            cluster("worker")
            try:
                return tf.distribute.MultiWorkerMirroredStrategy()
            except (RuntimeError, ValueError, tf.errors.OpError) as error:
                raise ClusterUnfit(
                    f"the workers of TF_CONFIG do not come together: {_first(error)}",
                    hint="is each of them started, with the same `cluster`, and its port free?",
                ) from None
        case "parameter_server":
            spec, _, _ = cluster("chief", "worker", "ps")
            resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
                spec, task_type="chief", task_id=0, rpc_layer="grpc"
            )
            return tf.distribute.ParameterServerStrategy(resolver)
        case _:
            return _tpu()


def cluster(*needed: str) -> tuple[tf.train.ClusterSpec, str, int]:
    """The cluster that TF_CONFIG names, and which task of it we are. Raises ClusterUnfit where it has not the jobs that
    are needed, or does not name us."""
    hint = (
        'set TF_CONFIG to {"cluster": {"worker": ["host:port", …]}, "task": {"type": "worker", "index": 0}}'
    )
    resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    try:
        spec, job, index = resolver.cluster_spec(), resolver.task_type, resolver.task_id
        jobs = spec.as_dict()
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise ClusterUnfit(f"TF_CONFIG is no cluster: {_first(error)}", hint=hint) from None
    if missing := [job for job in needed if not jobs.get(job)]:
        raise ClusterUnfit(f"TF_CONFIG names no {' and no '.join(missing)}", hint=hint)
    if job not in jobs or index is None or not 0 <= int(index) < len(jobs[job]):
        raise ClusterUnfit(
            f"TF_CONFIG says that we are {job} {index}, which its cluster has not: is it stale?", hint=hint
        )
    return spec, str(job), int(index)


def leads(name: Name) -> bool:
    """Whether this process is the one that writes what was trained."""
    if name != "multi_worker":
        return True
    _, job, index = cluster("worker")
    return job == "chief" or (job == "worker" and index == 0)


def serve(name: Name) -> None:
    """A worker or a parameter server of the chief's: wait until we are ended. Returns at once for anybody else."""
    if name != "parameter_server":
        return
    spec, job, index = cluster("chief", "worker", "ps")
    if job in SERVED:
        tf.distribute.Server(spec, job_name=job, task_index=index, protocol="grpc").join()


def is_plain(strategy: tf.distribute.Strategy) -> bool:
    """Whether there is one replica in one process: then Keras' own `fit` trains."""
    return isinstance(strategy, tf.distribute.OneDeviceStrategy)


def is_asynchronous(strategy: tf.distribute.Strategy) -> bool:
    """Whether workers take steps without waiting for one another."""
    return isinstance(strategy, tf.distribute.ParameterServerStrategy)


def clip_of(strategy: tf.distribute.Strategy) -> float:
    """The norm that one replica clips to, of its n-th part of the summed gradient, so that the sum is clipped to 1."""
    return (
        1.0
        if isinstance(strategy, tf.distribute.ParameterServerStrategy)
        else 1.0 / strategy.num_replicas_in_sync
    )


def row_losses(churned: Any, logit: Any) -> Any:
    """Log loss of each row, f4[n], so that whoever adds them up can weigh them. Keras' BinaryCrossentropy takes the
    mean over the last axis, which of logits [n] is the batch: it would weigh the mean of all rows, and no row."""
    return tf.nn.sigmoid_cross_entropy_with_logits(tf.cast(churned, tf.float32), tf.cast(logit, tf.float32))


class Steps:
    """`Steps(strategy, network, optimizer, batch)`: epochs of steps over whole batches of (inputs, churned, weight).
    batch: rows of all replicas together."""

    def __init__(
        self, strategy: tf.distribute.Strategy, network: keras.Model, optimizer: Any, batch: int
    ) -> None:
        self._strategy, self._network, self._optimizer, self._batch = strategy, network, optimizer, batch
        self._apart = is_asynchronous(strategy)
        self._step = tf.function(self._of_iterator if self._apart else self._of_batch)
        self._iterator: Any = None
        self._data: tuple[tf.data.Dataset, Any] | None = None
        self._numbers: list[int] = []

    @property
    def by_worker(self) -> list[int]:
        """`scheduled` steps that each worker has taken, the most first."""
        return steps_by_worker(self._numbers)

    def epoch(
        self, data: tf.data.Dataset, before: Callable[[int], None], after: Callable[[int], None]
    ) -> float:
        """One epoch, each row in one replica; the mean loss of a batch. The same dataset object goes on where its
        shuffling was. before, after: called around each step."""
        if self._data is None or self._data[0] is not data:
            options = tf.data.Options()
            options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
            self._data = (data, self._strategy.experimental_distribute_dataset(data.with_options(options)))
        losses = []
        for number, columns in enumerate(self._data[1]):
            before(number)
            losses.append(float(self._step(*columns)))
            after(number)
        return sum(losses) / max(len(losses), 1)

    def scheduled(
        self,
        make: Callable[[], tf.data.Dataset],
        steps: int,
        before: Callable[[int], None],
        after: Callable[[int], None],
    ) -> float:
        """So many steps on whichever worker is free, then a pause until all are done; the mean loss of a batch. make:
        makes a worker's dataset, which has no end; before, after: called around the scheduling of each step."""
        coordinator = _coordinator(self._strategy)
        if self._iterator is None:
            self._iterator = iter(coordinator.create_per_worker_dataset(lambda: make().repeat().enumerate()))
        scheduled = []
        for number in range(steps):
            before(number)
            scheduled.append(coordinator.schedule(self._step, args=(self._iterator,)))
            after(number)
        coordinator.join()
        done = [step.fetch() for step in scheduled]
        self._numbers += [int(number) for number, _ in done]
        return sum(float(lost) for _, lost in done) / max(steps, 1)

    def _of_batch(self, *columns: Any) -> Any:
        lost = self._strategy.run(self._replica, args=columns)
        return self._strategy.reduce(tf.distribute.ReduceOp.SUM, lost, axis=None)

    def _of_iterator(self, iterator: Any) -> Any:
        number, columns = next(iterator)
        return number, self._strategy.run(self._replica, args=columns)

    def _replica(self, inputs: Any, churned: Any, weight: Any) -> Any:
        replicas = 1 if self._apart else self._strategy.num_replicas_in_sync
        variables = self._network.trainable_variables
        with tf.GradientTape() as tape:
            each = weight * row_losses(churned, self._network(inputs, training=True))
            lost = tf.reduce_sum(each) / self._batch + tf.add_n(self._network.losses or [0.0]) / replicas
            scaled = self._optimizer.scale_loss(lost)  # in float16, lest small gradients vanish
        gradients = tape.gradient(scaled, [variable.value for variable in variables])
        gradients = [tf.convert_to_tensor(gradient) for gradient in gradients]  # an embedding's are sparse
        if replicas > 1:
            context = tf.distribute.get_replica_context()
            # The optimizer adds up what the replicas hand it: each hands it an equal part of the sum.
            summed = context.all_reduce(tf.distribute.ReduceOp.SUM, gradients)
            gradients = [gradient / replicas for gradient in summed]
        self._optimizer.apply(gradients, variables)
        return lost


def steps_by_worker(numbers: Iterable[int]) -> list[int]:
    """Steps that each worker took, the most first. numbers: of the batches of all steps, each by its place in its
    worker's own dataset. Every worker counts from 0, so as many took more than i steps as there are batches of number
    i. One that was started again counts anew, as if it were another."""
    found = Counter(numbers).values()
    return [sum(workers >= place for workers in found) for place in range(1, max(found, default=0) + 1)]


@cache
def _coordinator(strategy: tf.distribute.Strategy) -> Any:
    """One a process: it keeps the connections to the workers."""
    return tf.distribute.coordinator.ClusterCoordinator(strategy)


def _tpu() -> tf.distribute.Strategy:
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver()
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
        return tf.distribute.TPUStrategy(resolver)
    except (ValueError, KeyError, RuntimeError, tf.errors.OpError) as error:
        raise ClusterUnfit(
            f"there is no TPU here: {_first(error)}", hint="set TPU_NAME, or take strategy: auto"
        ) from None


def _first(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
