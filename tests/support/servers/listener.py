"""A broker's second listener, behind a proxy: who comes that way meets the network's faults, all others do not."""

from tests.support.servers.proxy import Proxy


def proxied_listener(inner: int, proxy: Proxy) -> dict[str, str]:
    """Settings of a broker that listens on the port `inner`, too, and tells whoever comes there to come by `proxy`."""
    return {
        "listeners": f"PROXIED://127.0.0.1:{inner}",
        "advertised.listeners": f"PROXIED://127.0.0.1:{proxy.port}",
        "listener.security.protocol.map": "PROXIED:PLAINTEXT",
    }
