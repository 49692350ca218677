"""One real Kafka that asks who we are: TLS, every SASL mechanism we know, and rights that are refused by default.

    plain       no TLS, no login: the administrator of these tests, who may do everything (and the brokers themselves)
    tls         TLS; a client may show a certificate, and is then its common name
    mutual      TLS; a client has to
    sasl        no TLS; PLAIN
    sasl_tls    TLS; PLAIN, SCRAM-SHA-256, SCRAM-SHA-512
    token       TLS; OAUTHBEARER with unsecured tokens, which expire

Certificates are made anew each time; the authority that nobody trusts is `stranger`. Every user's password is
`PASSWORD`, so that a test can look for it where it must not be.
"""

import asyncio
import base64
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import trustme
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.protocol.admin import CreateAclsRequest

from ebbtide.ops.stack.local import LocalKafka
from ebbtide.ops.stack.server import free_ports
from ebbtide.stream.kafka.settings import KafkaSettings

PASSWORD = "Tell-nobody-4711"
USERS = ("alice", "bob")
LISTENERS = ("tls", "mutual", "sasl", "sasl_tls", "token")
SHORT_S = 1.5
# Kafka's codes for what an ACL names.
RESOURCES = {"topic": 2, "group": 3, "cluster": 4, "transactional-id": 5}
OPERATIONS = {"READ": 3, "WRITE": 4, "CREATE": 5, "DESCRIBE": 8, "IDEMPOTENT_WRITE": 12}
LITERAL, PREFIXED, ALLOW = 3, 4, 3
PLAIN_LOGIN = "org.apache.kafka.common.security.plain.PlainLoginModule required {};"
SCRAM_LOGIN = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
TOKEN_LOGIN = (
    "org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required"
    ' unsecuredLoginStringClaim_sub="broker";'
)


def token(subject: str = "alice", life_s: float = 3600.0) -> str:
    """An unsecured JWT for `subject`, good for `life_s` seconds from now."""
    now = time.time()
    claims: dict[str, object] = {"sub": subject, "iat": now - 1, "exp": now + life_s}
    return ".".join([*(_encoded(part) for part in ({"alg": "none"}, claims)), ""])


def _encoded(part: Mapping[str, object]) -> str:
    return base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()


@dataclass(frozen=True)
class SecureKafka:
    """Where it listens, and the files that its clients need."""

    kafka: LocalKafka
    ports: dict[str, int]
    folder: Path

    def url(self, listener: str) -> str:
        return self.kafka.url if listener == "plain" else f"127.0.0.1:{self.ports[listener]}"

    def settings(self, listener: str, name: str, **more: object) -> KafkaSettings:
        """For a worker whose topic and group are `name`; `more` settings win."""
        quick = {
            "session_timeout_s": 1.5,
            "heartbeat_interval_s": 0.3,
            "commit_interval_s": 0.2,
            "request_timeout_s": 5.0,
        }
        ours: dict[str, object] = {"url": self.url(listener), "topic": name, "group": name, **quick}
        if listener not in ("plain", "sasl"):
            ours["tls"] = {"enabled": True, "ca_file": self.folder / "ca.pem"}
        return KafkaSettings.model_validate(ours | more)


@contextmanager
def secure_kafka(folder: Path) -> Iterator[SecureKafka]:
    """Start it, and end it. `folder` takes the certificates."""
    authority, stranger = trustme.CA(), trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    stranger.cert_pem.write_to_path(folder / "stranger.pem")
    # Not for localhost, which is a wrong name for it.
    server = authority.issue_cert("127.0.0.1", common_name="broker")
    # Kafka reads the key only in PKCS#8, and certificate and key from one file.
    (folder / "server.pem").write_bytes(_pkcs8(server) + b"".join(c.bytes() for c in server.cert_chain_pems))
    for name, issuer in (("alice", authority), ("mallory", stranger)):
        issued = issuer.issue_cert(f"{name}@example.org", common_name=name)
        issued.private_key_and_cert_chain_pem.write_to_path(folder / f"{name}.pem")
    ports: dict[str, int] = {}

    def settings(number: int, client_port: int) -> dict[str, str]:
        ports.update(zip(LISTENERS, free_ports(len(LISTENERS)), strict=True))
        return _configuration(ports, folder)

    users = [
        option
        for user in USERS
        for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512")
        for option in ("--add-scram", f"{mechanism}=[name={user},password={PASSWORD}]")
    ]
    with LocalKafka(settings=settings, format_options=users) as kafka:
        yield SecureKafka(kafka, ports, folder)


def _configuration(ports: dict[str, int], folder: Path) -> dict[str, str]:
    where = ",".join(f"{name.upper()}://127.0.0.1:{port}" for name, port in ports.items())
    protocols = {
        "tls": "SSL",
        "mutual": "SSL",
        "sasl": "SASL_PLAINTEXT",
        "sasl_tls": "SASL_SSL",
        "token": "SASL_SSL",
    }
    known = " ".join(f'user_{user}="{PASSWORD}"' for user in USERS)
    return {
        "listeners": where,
        "advertised.listeners": where,
        "listener.security.protocol.map": ",".join(
            f"{name.upper()}:{kind}" for name, kind in protocols.items()
        ),
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(folder / "server.pem"),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(folder / "ca.pem"),
        "ssl.principal.mapping.rules": "RULE:^.*CN=([A-Za-z0-9]+).*$/$1/,DEFAULT",
        "listener.name.tls.ssl.client.auth": "requested",
        "listener.name.mutual.ssl.client.auth": "required",
        "listener.name.sasl.sasl.enabled.mechanisms": "PLAIN",
        "listener.name.sasl.plain.sasl.jaas.config": PLAIN_LOGIN.format(known),
        "listener.name.sasl_tls.sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512",
        "listener.name.sasl_tls.plain.sasl.jaas.config": PLAIN_LOGIN.format(known),
        "listener.name.sasl_tls.scram-sha-256.sasl.jaas.config": SCRAM_LOGIN,
        "listener.name.sasl_tls.scram-sha-512.sasl.jaas.config": SCRAM_LOGIN,
        "listener.name.token.sasl.enabled.mechanisms": "OAUTHBEARER",
        "listener.name.token.oauthbearer.sasl.jaas.config": TOKEN_LOGIN,
        # A connection lives no longer than its token.
        "listener.name.token.oauthbearer.connections.max.reauth.ms": "3600000",
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:ANONYMOUS",
        "allow.everyone.if.no.acl.found": "false",
    }


def _pkcs8(issued: trustme.LeafCert) -> bytes:
    from cryptography.hazmat.primitives import serialization as s

    key = s.load_pem_private_key(issued.private_key_pem.bytes(), None)
    return key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption())


def expired() -> str:
    """A token that is no good any more."""
    return token(life_s=-1.0)


ASKED: list[asyncio.AbstractEventLoop] = []
"""The event loops that asked `short_lived` for a token, in order."""


async def short_lived() -> str:
    """A token that is good for a moment: a client that lives longer has to ask again."""
    ASKED.append(asyncio.get_running_loop())
    return token(life_s=SHORT_S)


def broken() -> str:
    """What asks an identity server that is away, and talks about it."""
    raise ConnectionError(f"no answer at https://id.example.org/?client_secret={PASSWORD}")


async def allow(secure: SecureKafka, user: str, *rights: str) -> None:
    """Grant `user` rights like "READ on topic x", on exactly that resource or, of transactional ids, all with that
    prefix; returns once the broker knows them."""
    client = AIOKafkaAdminClient(bootstrap_servers=secure.url("plain"))
    await client.start()
    try:
        for right in rights:
            operation, _, resource = right.partition(" on ")
            kind, _, name = resource.partition(" ")
            request = CreateAclsRequest(
                RESOURCES[kind],
                name or "kafka-cluster",
                PREFIXED if kind == "transactional-id" else LITERAL,
                f"User:{user}",
                "*",
                OPERATIONS[operation],
                ALLOW,
            )
            (answer,) = (await client._send_to_controller(request)).creation_responses
            assert answer[0] == 0, answer
    finally:
        await client.close()
    await asyncio.sleep(0.3)  # the controller has them; the broker beside it hears of it a moment later
