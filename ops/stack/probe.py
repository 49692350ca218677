"""Does the server on this port serve, and is it ours? A probe never raises for a server that is not there yet: it
answers None, and the caller asks again, every 20 ms.

Redis is asked by its client. Kafka is asked one request by hand: aiokafka's takes an event loop and 90 to 140 ms for
each question where this takes 13 to 40, and writes an error for each that comes too early.
"""

import socket
import struct

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

TIMEOUT_S = 2.0
_METADATA = 3
_METADATA_VERSION = 4  # old enough to be simple, new enough for Kafka 4


def kafka_nodes(port: int) -> tuple[str, list[int]] | None:
    """Cluster id and node ids of the live brokers, by the broker at 127.0.0.1:`port`; None when it does not serve.

    The request is Metadata v4 for no topic, without creating any:
        length:int32 | api_key:int16 api_version:int16 correlation:int32 client_id:string | topics:int32=0 create:int8=0
    The answer:
        length:int32 | correlation:int32 | throttle_ms:int32 | brokers: n:int32 × (id:int32 host:string port:int32
        rack:string) | cluster_id:string | …                     string = length:int16 (-1 = null) + bytes
    """
    body = struct.pack(">hhih7sib", _METADATA, _METADATA_VERSION, 1, 7, b"ebbtide", 0, 0)
    try:
        with socket.create_connection(("127.0.0.1", port), TIMEOUT_S) as connection:
            connection.settimeout(TIMEOUT_S)
            connection.sendall(struct.pack(">i", len(body)) + body)
            (length,) = struct.unpack(">i", _exactly(connection, 4))
            answer = _exactly(connection, length)
    except OSError:
        return None
    at = 8
    (n,) = struct.unpack_from(">i", answer, at)
    at += 4
    nodes = []
    for _ in range(n):
        nodes.append(struct.unpack_from(">i", answer, at)[0])
        _, at = _string(answer, at + 4)
        _, at = _string(answer, at + 4)
    cluster_id, _ = _string(answer, at)
    return cluster_id, nodes


def redis_pid(port: int, password: str = "") -> int | None:
    """Process id of the Redis or Valkey server at 127.0.0.1:`port`; None when it does not serve (yet)."""
    try:
        with Redis(
            port=port, password=password or None, protocol=2, retry=Retry(NoBackoff(), 0),
            socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S,
        ) as server:  # fmt: skip
            info: dict[str, int] = server.info("server")
    except (RedisError, OSError):  # not there, loading, or another password
        return None
    return int(info["process_id"])


def _exactly(connection: socket.socket, n: int) -> bytes:
    read = b""
    while len(read) < n:
        more = connection.recv(n - len(read))
        if not more:
            raise ConnectionResetError
        read += more
    return read


def _string(data: bytes, at: int) -> tuple[str, int]:
    (length,) = struct.unpack_from(">h", data, at)
    end = at + 2 + max(0, length)
    return data[at + 2 : end].decode(), end
