"""What is served here: the model that would be loaded, and who can reach the HTTP face."""

import asyncio

from ebbtide.featurestore.record.layout import Layout
from ebbtide.ops.config.settings import HttpSettings, Settings
from ebbtide.ops.doctor.finding import Finding, ok, warning
from ebbtide.ops.http.auth import is_loopback

TOKEN_CHARS_MIN = 16


async def examine_model(settings: Settings, layout: Layout) -> list[Finding]:
    """Load it as a worker would, in its first size. Raises ModelError."""
    from ebbtide.ops.worker.compose import load_slot  # noqa: PLC0415 - brings TensorFlow, which is loaded quietly before

    slot = await asyncio.to_thread(load_slot, settings, layout, whole=False)
    current = slot.current
    found = [ok("model", f"{current.name} version {current.version} loads, and is of this spec")]
    return found + [
        warning("model", f"version {number} is not served: {why}", "publish it again, or take it away")
        for number, why in sorted(slot.refused.items())
    ]


def examine_http(http: HttpSettings) -> list[Finding]:
    """Who reaches the probes, the metrics and /v1."""
    if is_loopback(http.host):
        return [ok("http", f"{http.host}: this machine only")]
    if http.token is None:
        return [
            warning(
                "http", f"{http.host} is reachable from outside and there is no token: /v1 answers 403",
                "set http.token, from a file (EBBTIDE_HTTP__TOKEN_FILE)",
            )
        ]  # fmt: skip
    if len(http.token.get_secret_value()) < TOKEN_CHARS_MIN:
        return [
            warning(
                "http", f"the token has fewer than {TOKEN_CHARS_MIN} characters and can be guessed",
                "make one with `openssl rand -hex 16`",
            )
        ]  # fmt: skip
    return [ok("http", f"{http.host}, behind a token; let TLS end in front of it")]
