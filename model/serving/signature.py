"""Who published a version: a detached signature over its manifest, which holds the checksum of every other file.

    manifest.json ── HMAC-SHA256(key) ──▶ manifest.hmac, 64 hex digits

Whoever holds the key can publish: trainer and workers share it, as they share other secrets, and it never lies in the
folder of models. With a key set, a version without a good signature is refused before anything of it is read but the
manifest. An HMAC and no public key, because it needs no library; a reader of the folder cannot forge it.
"""

import hashlib
import hmac
from pathlib import Path

from ebbtide.model.errors import ModelUntrusted

SIGNATURE = "manifest.hmac"
SIGNATURE_BYTES_MAX = 256


def sign(manifest: bytes, key: str) -> str:
    """The signature of a manifest's bytes, in hex."""
    return hmac.new(key.encode(), manifest, hashlib.sha256).hexdigest()


def check(path: Path, manifest: bytes, key: str, title: str) -> None:
    """Raises ModelUntrusted unless `path` holds the signature of `manifest` by `key`."""
    try:
        with (path / SIGNATURE).open("rb") as file:
            said = file.read(SIGNATURE_BYTES_MAX).strip()
    except FileNotFoundError:
        raise ModelUntrusted(
            f"model {title} is not signed", hint=f"sign what you trust: `ebbtide model sign {path}`"
        ) from None
    if not hmac.compare_digest(said, sign(manifest, key).encode()):
        raise ModelUntrusted(
            f"model {title} is signed with another key, or was changed since",
            hint="compare model_key with the trainer's; publish again what was changed",
        )
