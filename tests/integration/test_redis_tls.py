"""The store behind TLS: with a private CA, a client's certificate, a Cluster, Sentinels, and what goes wrong."""

import asyncio
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ebbtide.featurestore.errors import StoreMisconfigured, StoreUnavailable
from ebbtide.featurestore.store.redis.credentials import Credentials
from ebbtide.featurestore.store.redis.store import RedisStore
from ebbtide.featurestore.store.redis.url import read_url
from ebbtide.ops.stack.local import LocalValkey
from ebbtide.ops.stack.server import Keeper, free_ports
from tests.support.seams.stores import DTYPE, step_of
from tests.support.servers.production import (
    ACL,
    CLUSTER_ACL,
    JANE,
    SLACK_S,
    WORKER,
    N,
    exercise,
    hanging,
    opened,
    patiently,
    says_nothing,
    surely,
)
from tests.support.servers.proxy import Proxy
from tests.support.servers.redis import (
    SERVICE,
    Certificates,
    LocalCluster,
    admin_of,
    copied,
    debian_redis,
    eventually,
    sentinel,
    tls_server,
)

pytestmark = pytest.mark.redis


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


# TLS


async def test_tls_with_a_private_ca(certificates: Certificates) -> None:
    with tls_server(certificates, clients=False) as (server, port):
        with admin_of(server) as admin:
            admin.execute_command("ACL", "SETUSER", "worker", "reset", "on", ">secret", "~t:clicks:*", *ACL)
        url = f"rediss://127.0.0.1:{port}/0"
        async with opened(f"{url}?ssl_ca_certs={certificates.ca}", credentials=WORKER) as store:
            await exercise(store)
        for untrusted in (url, f"{url}?ssl_ca_certs={certificates.other_ca}"):
            async with opened(untrusted, credentials=WORKER) as store:
                for question in (store.start(), store.checkpoint(0), store.find(JANE)):
                    with pytest.raises(
                        StoreMisconfigured, match=r"(?i)certificate.*ssl_ca_certs=FILE"
                    ) as error:
                        await question
                    says_nothing(error.value)
        # A server without TLS waits for the rest of what it takes for a command, or refuses what it has read.
        no_tls = f"rediss://127.0.0.1:{server.port}?ssl_ca_certs={certificates.ca}"
        async with opened(no_tls, timeout_s=0.5) as store:
            with pytest.raises((StoreUnavailable, StoreMisconfigured), match="TLS port"):
                await store.start()


async def test_a_certificate_of_another_name_is_refused(certificates: Certificates) -> None:
    """It is valid for 127.0.0.1, and we know the server as localhost. A URL may say that names do not matter."""
    with tls_server(certificates, clients=False) as (_, port):
        ca = f"ssl_ca_certs={certificates.ca}"
        for scheme in ("rediss", "rediss+cluster"):
            async with opened(
                f"{scheme}://localhost:{port}?{ca}", credentials=Credentials(password="secret"), timeout_s=2
            ) as store:
                for question in (store.start(), store.checkpoint(0), store.find(JANE)):
                    with pytest.raises(
                        StoreMisconfigured, match=r"not valid for 'localhost'.*as their certificates do"
                    ) as error:
                        await question
                    says_nothing(error.value)
        async with opened(f"rediss://localhost:{port}?{ca}&ssl_check_hostname=no") as store:
            await exercise(store, steps=5)


async def test_tls_where_the_server_asks_for_our_certificate(certificates: Certificates) -> None:
    with tls_server(certificates, clients=True) as (_, port):
        url = f"rediss://127.0.0.1:{port}?ssl_ca_certs={certificates.ca}"
        ours = certificates.client
        async with opened(f"{url}&ssl_certfile={ours}&ssl_keyfile={ours}") as store:
            await exercise(store)
        async with opened(url) as store:
            for question in (store.start, lambda: store.checkpoint(0), lambda: store.find(JANE)):
                # A server that closes with our question unread resets the connection, and its reason may be lost with
                # it: then it is away, as far as anybody can tell, and the next try hears more.
                with pytest.raises(StoreMisconfigured, match="ssl_certfile=FILE"):
                    await patiently(question)


ALERTS = {40: "handshake_failure", 80: "internal_error", 90: "user_canceled", 112: "unrecognized_name"}
"""What proxies and load balancers say while they restart, or have nothing behind them."""


@pytest.mark.parametrize("alert", ALERTS, ids=ALERTS.get)
async def test_a_tls_alert_after_an_answer_is_an_outage(certificates: Certificates, alert: int) -> None:
    """Before the first answer it is a setting; after it, a proxy that restarts, and worth a wait."""

    async def turn_away(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(64)
        writer.write(bytes([21, 3, 3, 0, 2, 2, alert]))
        writer.close()

    with tls_server(certificates, clients=False) as (_, port), Proxy(port) as address:
        turning = await asyncio.start_server(turn_away, "127.0.0.1", 0)
        async with turning:
            away = turning.sockets[0].getsockname()[1]
            url = f"rediss://127.0.0.1:{address.port}?ssl_ca_certs={certificates.ca}"
            async with opened(url, timeout_s=2) as store:
                address.point(away)
                with pytest.raises(StoreMisconfigured, match="TLS"):
                    await store.checkpoint(0)
                address.point(port)
                assert await store.checkpoint(0) is None
                address.cut()
                address.point(away)
                address.heal()
                for _ in range(3):
                    with pytest.raises(StoreUnavailable):
                        await store.checkpoint(0)
                address.point(port)
                assert await patiently(lambda: store.checkpoint(0)) is None


async def test_a_certificate_not_trusted_is_never_an_outage(
    certificates: Certificates, tmp_path: Path
) -> None:
    """Also behind an address that was right a moment ago."""
    other = tmp_path / "other"
    other.mkdir()
    with (
        tls_server(certificates, clients=False) as (_, port),
        tls_server(Certificates(other), clients=False) as (_, stranger),
        Proxy(port) as address,
    ):
        async with opened(f"rediss://127.0.0.1:{address.port}?ssl_ca_certs={certificates.ca}") as store:
            assert await store.checkpoint(0) is None
            address.cut()
            address.point(stranger)
            address.heal()

            async def ask() -> None:
                await store.checkpoint(0)

            with pytest.raises(StoreMisconfigured, match="ssl_ca_certs=FILE"):
                await patiently(ask)


def test_tls_checks_names_unless_the_url_says_otherwise() -> None:
    """Said by us, since not every redis-py that we allow does so by itself."""

    def checked(url: str) -> list[Any]:
        place = read_url(url, Credentials(), {"max_connections": 1, "timeout": 1.0}, {})
        return [options.get("ssl_check_hostname") for options in (place.options, place.sentinel) if options]

    for url in (
        "rediss://h",
        "rediss+cluster://h",
        "rediss://h?ssl_check_hostname=",
        "rediss+sentinel://h/name",
    ):
        assert set(checked(url)) == {True}
    for url in ("rediss://h?ssl_check_hostname=no", "rediss://h?ssl_cert_reqs=none"):
        assert checked(url) == [False]
    assert checked("redis://h") == [None]


async def test_closing_gives_up_on_a_hanging_server(certificates: Certificates) -> None:
    """Over TLS a connection is closed when both sides said so, and this one says nothing."""
    with tls_server(certificates, clients=False) as (server, port):
        url = f"rediss://127.0.0.1:{port}?ssl_ca_certs={certificates.ca}"
        store = RedisStore(url, DTYPE, "clicks", N, timeout_s=2)
        await asyncio.gather(
            *(store.checkpoint(p) for p in range(3))
        )  # three connections, one of which meets the silence

        async def ask_and_close() -> None:
            try:
                await store.checkpoint(0)
            finally:
                await store.close()

        with hanging(server):
            begun = time.monotonic()
            with pytest.raises(StoreUnavailable, match="EBBTIDE_REDIS_URL"):
                await ask_and_close()
            assert time.monotonic() - begun < 4 + SLACK_S


async def test_closing_a_cluster_closes_every_node_that_answers(certificates: Certificates) -> None:
    with LocalCluster(binary=debian_redis(), tls=certificates) as cluster:
        cluster.everywhere("ACL", "SETUSER", "worker", "reset", "on", ">secret", "~t:clicks:*", *CLUSTER_ACL)

        def clients(node: LocalValkey) -> int:
            with admin_of(node) as admin:
                return len([client for client in admin.client_list() if client["user"] == "worker"])

        url = f"rediss+cluster://{cluster.hosts}?ssl_ca_certs={certificates.ca}"
        async with opened(url, credentials=WORKER, timeout_s=2) as store:
            for partition in range(N):
                await patiently(lambda p=partition: store.checkpoint(p))  # type: ignore[misc]  # bound now
            assert all(clients(node) for node in cluster.nodes)
            with hanging(cluster.nodes[0]), hanging(cluster.nodes[1]):
                begun = time.monotonic()
                await store.close()
                assert time.monotonic() - begun < 2 + SLACK_S
                eventually(lambda: not clients(cluster.nodes[2]))


@pytest.mark.parametrize("how", ["killed", "hangs"])
async def test_a_cluster_behind_tls_whose_replica_takes_over(certificates: Certificates, how: str) -> None:
    """Every node is reached by TLS, also those that only the Cluster named, and the one that becomes a master. The one
    that it was before is not waited for, not even for its goodbye."""
    rng = np.random.default_rng(8)
    with LocalCluster(binary=debian_redis(), tls=certificates) as cluster, ExitStack() as meanwhile:
        host = cluster.hosts.split(",")[1]
        cluster.add_replica()
        cluster.everywhere("ACL", "SETUSER", "worker", "reset", "on", ">secret", "~t:clicks:*", *CLUSTER_ACL)
        url = f"rediss+cluster://{host}"
        async with opened(f"{url}?ssl_ca_certs={certificates.ca}", credentials=WORKER, timeout_s=2) as store:
            await exercise(store)
            partition = next(p for p in range(N) if cluster.node_of(f"{{p{p}}}") == 0)
            commit = step_of(None, ["a"], rng, partition=partition)
            await store.apply(commit)
            eventually(lambda: copied(cluster.nodes[0], f"{{p{partition}}}:copied"))
            if how == "killed":
                await asyncio.to_thread(cluster.nodes[0].kill)
            else:
                await asyncio.gather(
                    *(store.checkpoint(partition) for _ in range(3))
                )  # connections that stay idle
                meanwhile.enter_context(hanging(cluster.nodes[0]))
            with pytest.raises(StoreUnavailable) as refusal:
                await store.checkpoint(partition)
            says_nothing(refusal.value)
            await asyncio.to_thread(eventually, lambda: cluster.taken_over(3))
            assert await store.checkpoint(partition) == commit.checkpoint  # at the first try
            await surely(store, step_of(commit.checkpoint, ["b"], rng, partition=partition))
            await store.start()
        async with opened(f"{url}?ssl_ca_certs={certificates.other_ca}") as store:
            for question in (store.start(), store.checkpoint(0), store.find(JANE)):
                with pytest.raises(StoreMisconfigured, match=r"(?i)certificate.*ssl_ca_certs=FILE") as error:
                    await question
                says_nothing(error.value)


async def test_sentinels_behind_tls_with_a_user_of_their_own(certificates: Certificates) -> None:
    with Keeper() as keeper, tls_server(certificates, clients=False) as (server, port):
        with admin_of(server) as admin:
            admin.execute_command("ACL", "SETUSER", "worker", "reset", "on", ">secret", "~t:clicks:*", *ACL)
        lines = [
            f"{name} {value}\n" for name, value in certificates.settings(0).items() if name != "tls-port"
        ]
        (guarded,) = free_ports(1)
        user = "user watcher on >secret2 -@all +sentinel|get-master-addr-by-name\n"
        more = f"tls-port {guarded}\ntls-replication yes\n{''.join(lines)}{user}"
        sentinel(keeper, "sentinel", port, quorum=1, more=more)
        url = f"rediss+sentinel://127.0.0.1:{guarded}/{SERVICE}?ssl_ca_certs={certificates.ca}"
        watching = replace(WORKER, sentinel_username="watcher", sentinel_password="secret2")
        async with opened(url, credentials=watching) as store:
            await exercise(store, steps=10)
        async with opened(url, credentials=replace(watching, sentinel_password="secret")) as store:
            for question in (store.start(), store.checkpoint(0)):
                with pytest.raises(StoreMisconfigured, match="EBBTIDE_REDIS__PASSWORD") as error:
                    await question
                says_nothing(error.value)
        other = url.replace(str(certificates.ca), str(certificates.other_ca))
        async with opened(other, credentials=watching) as store:
            with pytest.raises(StoreMisconfigured, match="ssl_ca_certs=FILE") as error:
                await store.start()
            says_nothing(error.value)
