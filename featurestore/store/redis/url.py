"""What the Redis URL says: one server, the nodes of a Cluster, or the Sentinels that know a master.

    redis://host:6379/0                            one server; rediss:// is TLS
    unix:///run/redis.sock?db=0                    one server
    redis+cluster://host1:6379,host2:6379          any nodes of a Cluster; rediss+cluster:// is TLS
    redis+sentinel://host1:26379,host2:26379/name  Sentinels, and the master's name there; /name/1 is database 1;
                                                   rediss+sentinel:// is TLS

Behind a `?` stand options of redis-py (ssl_ca_certs, ssl_certfile, ssl_keyfile, socket_timeout, …). Users and passwords
are no part of a URL: see `credentials.py`. Nothing connects here. Whatever is refused is StoreMisconfigured, at once,
and no text of it repeats the URL, since somebody may have written a password into it; nor has it a cause, whose text
would.
"""

from typing import Any, NamedTuple, NoReturn
from urllib.parse import unquote, urlsplit

from redis.asyncio import Connection, SSLConnection
from redis.asyncio.connection import parse_url
from redis.exceptions import RedisError

from ebbtide.featurestore.errors import StoreMisconfigured
from ebbtide.featurestore.store.redis.credentials import Credentials, in_url

SETTING = "EBBTIDE_REDIS_URL"
PORT, SENTINEL_PORT = 6379, 26379
USER_SETTINGS = "EBBTIDE_REDIS__USERNAME and EBBTIDE_REDIS__PASSWORD"
SENTINEL_SETTINGS = "EBBTIDE_REDIS__SENTINEL__USERNAME and EBBTIDE_REDIS__SENTINEL__PASSWORD"
FORMS = "redis://host:6379, rediss:// (TLS), unix://, redis+cluster:// or redis+sentinel://"

Address = tuple[str, int]
"""Host and port."""


class RedisTarget(NamedTuple):
    """Where Redis is. `topology`: "server", "cluster" or "sentinel". `hosts`: the server, or some nodes, or the
    Sentinels. `service`: the master's name for Sentinels, else empty. `connection`: redis-py's class for the transport.
    `options`: what that class takes, credentials included; for one server its address, too. `sentinel`: those options
    for a connection to a Sentinel. `where` names the place in messages.
    """

    topology: str
    hosts: list[Address]
    service: str
    connection: type[Any]
    options: dict[str, Any]
    sentinel: dict[str, Any]
    where: str


def read_url(url: str, credentials: Credentials, ours: dict[str, Any], always: dict[str, Any]) -> RedisTarget:
    """The place that `url` names. Its own options win over `ours`, and `always` over both.

    Raises StoreMisconfigured for a URL, an option or a certificate file that cannot be understood, and for a user or a
    password in the URL.
    """
    if in_url(url):
        hint = (
            f"set {USER_SETTINGS} (the Sentinels' own: {SENTINEL_SETTINGS}); an @ that is none is written %40"
        )
        raise StoreMisconfigured(f"{SETTING} holds no credentials", hint=hint)
    ours = {**ours, **credentials.options()}
    try:
        if "+" in urlsplit(url).scheme:
            place = _several(url, credentials, ours, always)
        else:
            options = {**ours, **parse_url(url), **always}
            kind = _transport(options)
            host, port = options.get("host", "localhost"), options.get("port", PORT)
            where = options.get("path") or f"{host}:{port}"
            place = RedisTarget("server", [(host, port)], "", kind, options, {}, where)
    except ValueError:  # its text holds the URL
        _refuse("the Redis URL cannot be understood")
    if credentials.sentinel_options() and place.topology != "sentinel":
        _refuse(f"{SENTINEL_SETTINGS} are given, but the Redis URL names no Sentinels")
    _try(place)
    return place


def _several(url: str, credentials: Credentials, ours: dict[str, Any], always: dict[str, Any]) -> RedisTarget:
    """The forms with several hosts: redis-py reads such a URL with one host, we read the hosts."""
    parts = urlsplit(url)
    transport, _, topology = parts.scheme.partition("+")
    if transport not in ("redis", "rediss") or topology not in ("cluster", "sentinel"):
        _refuse(f"the Redis URL begins with {parts.scheme}://, which is none that we know")
    port = PORT if topology == "cluster" else SENTINEL_PORT
    addresses = [_address(host, port) for host in parts.netloc.split(",")]
    path = [unquote(part) for part in parts.path.strip("/").split("/")]
    service, database = "", path[0]
    if topology == "sentinel":
        service, database = path[0], path[1] if len(path) > 1 else ""
        if not service:
            _refuse("the Redis URL lacks the name under which the Sentinels know the master")
    if len(path) > (2 if topology == "sentinel" else 1) or not (database or "0").isdecimal():
        _refuse("the path of the Redis URL cannot be understood")
    if topology == "cluster" and int(database or 0):
        _refuse("a Redis Cluster has database 0 only")
    said = parse_url(f"{transport}://host?{parts.query}")
    del said["host"]
    options = {**ours, **said, "db": int(database or 0), **always}
    kind = _transport(options)
    apart = ("db", "username", "password", "max_connections", "timeout")
    sentinel = {name: value for name, value in options.items() if name not in apart}
    where = ",".join(f"{host}:{port}" for host, port in addresses)
    if topology == "sentinel":
        sentinel |= credentials.sentinel_options()
        return RedisTarget(
            topology, addresses, service, kind, options, sentinel, f"{service} of Sentinels {where}"
        )
    return RedisTarget(topology, addresses, "", kind, options, {}, where)


def _transport(options: dict[str, Any]) -> type[Any]:
    """redis-py's class for TLS, for unix sockets or for neither, taken out of the options.

    Host names are checked unless the URL says otherwise. Older redis-py (5.0) has to be told; it also refuses to check
    the name in a certificate that is not checked at all.
    """
    kind: type[Any] = options.pop("connection_class", Connection)
    if issubclass(kind, SSLConnection) and options.get("ssl_check_hostname") is None:
        options["ssl_check_hostname"] = options.get("ssl_cert_reqs") != "none"
    return kind


def _address(text: str, port: int) -> Address:
    parts = urlsplit(f"//{text}")
    if not parts.hostname or parts.path or parts.query:
        _refuse("the Redis URL lacks a host, or has one too many commas")
    return parts.hostname, parts.port or port


def _try(place: RedisTarget) -> None:
    """What a connection would be told only later, while it is made: unknown options, files that are not there."""
    try:
        apart = ("max_connections", "timeout")
        connection = place.connection(**{k: v for k, v in place.options.items() if k not in apart})
    except (TypeError, ValueError, RedisError):
        _refuse("an option of the Redis URL is unknown or cannot be understood", "ssl_* need rediss")
    if isinstance(connection, SSLConnection):
        try:
            connection.ssl_context.get()
        except (OSError, ValueError, TypeError):
            files = "ssl_ca_certs, ssl_certfile or ssl_keyfile"
            _refuse(f"a certificate of the Redis URL cannot be read ({files})", "give PEM files")


def _refuse(what: str, more: str = "") -> NoReturn:
    hint = f"set {SETTING} to {FORMS}" + (f"; {more}" if more else "")
    raise StoreMisconfigured(what, hint=hint) from None
