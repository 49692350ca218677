"""What stands for a customer in Redis: their id as it is, or hidden by a secret key.

    key            blake2b(secret) ─▶ tag key, cipher key
    tag            blake2b(id, tag key), 128 bits
    stands there   base64url(tag ‖ id xor blake2b(tag ‖ block, cipher key))

The tag is a keyed hash: without the key nobody can tell whether somebody is there, by trying ids or otherwise. A hash
alone would not do: time makes people due, and Redis is then the only one who knows who they are. So the id lies behind
its tag, encrypted with the tag as its nonce (the construction of SIV modes; the same id always gives the same text, as
a key of Redis has to), and what was hidden by another key does not open. The outbox is hidden in the same way. So a
slow log, MONITOR, an append-only file or a backup names nobody; who loses the key has lost the state, and makes it anew
from the topic.

What is not hidden: that two keys are of the same customer, how long an id is, the records' figures.

Composite customers (`featurestore/customer.py`) are to be found by their first part, so what stands for them begins
alike: with the first part itself, or, hidden, with its tag. So it is not hidden either who has the same first part.
"""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error
from functools import lru_cache
from hashlib import blake2b

from ebbtide.featurestore.customer import SEPARATOR, first_of
from ebbtide.featurestore.errors import LayoutError
from ebbtide.featurestore.store.checkpoint import REBUILD

TAG_BYTES = 16
FIRST_BYTES = 15
"""Of a first part's tag: base64 without padding."""
BEHIND_FIRST = "."
"""Behind it, and nowhere in base64."""
BLOCK_BYTES = 64
SECRET_CHARS_MIN = 32
"""Of `openssl rand -hex 32`: nothing slows down who tries words."""
CACHED = 1 << 16
OTHER_KEY = f"set redis.customer_key to the key that this state was made with, or {REBUILD}"


class Names:
    """Ids as they are. composite: customers are composite ones."""

    id = ""
    """What a checkpoint says of the key; no two keys have the same one."""
    keep_order = True
    """What stands for customers sorts as they do."""

    def __init__(self, *, composite: bool = False) -> None:
        self.composite = composite

    def beginning(self, first: str) -> str:
        """What that begins with which stands for the customers of a first part, and for nobody else."""
        return first + SEPARATOR

    def stored(self, customer: str) -> str:
        """What stands for the customer."""
        return customer

    def customer(self, stored: bytes) -> str:
        """Whom it stands for. Raises LayoutError."""
        try:
            return stored.decode()
        except UnicodeDecodeError:
            raise LayoutError("a customer's name there is no text", hint=REBUILD) from None

    def sealed(self, plain: bytes) -> bytes:
        """Other bytes that name customers, as they are stored."""
        return plain

    def opened(self, sealed: bytes) -> bytes:
        """What `sealed` took. Raises LayoutError."""
        return sealed


class HiddenNames(Names):
    """Ids hidden by `secret`, at least SECRET_CHARS_MIN characters of chance."""

    keep_order = False

    def __init__(self, secret: str, *, composite: bool = False) -> None:
        super().__init__(composite=composite)
        keys = blake2b(secret.encode(), digest_size=64, person=b"ebbtide names").digest()
        self._tag_key, self._cipher_key = keys[:32], keys[32:]
        self.id = blake2b(key=keys, digest_size=8, person=b"ebbtide key").hexdigest()
        # A customer who is active is asked for again and again; of the others it costs 5 µs.
        self.stored = lru_cache(CACHED)(self._stored)  # type: ignore[method-assign]  # the same, remembered

    def _stored(self, customer: str) -> str:
        hidden = urlsafe_b64encode(self.sealed(customer.encode())).decode("ascii")
        return self.beginning(first_of(customer)) + hidden if self.composite else hidden

    def beginning(self, first: str) -> str:
        return urlsafe_b64encode(self._tag(first.encode())[:FIRST_BYTES]).decode("ascii") + BEHIND_FIRST

    def customer(self, stored: bytes) -> str:
        stored = stored.rpartition(BEHIND_FIRST.encode())[2] if self.composite else stored
        try:
            return self.opened(urlsafe_b64decode(stored)).decode()
        except Error:
            raise LayoutError("a customer's name there is not hidden", hint=OTHER_KEY) from None

    def sealed(self, plain: bytes) -> bytes:
        tag = self._tag(plain)
        return tag + self._ciphered(tag, plain)

    def opened(self, sealed: bytes) -> bytes:
        tag = sealed[:TAG_BYTES]
        plain = self._ciphered(tag, sealed[TAG_BYTES:])
        if self._tag(plain) != tag:
            raise LayoutError("what is stored was hidden by another key", hint=OTHER_KEY)
        return plain

    def _tag(self, plain: bytes) -> bytes:
        return blake2b(plain, key=self._tag_key, digest_size=TAG_BYTES).digest()

    def _ciphered(self, tag: bytes, data: bytes) -> bytes:
        """With the stream of `tag`; twice is none."""
        blocks = range(-(-len(data) // BLOCK_BYTES))
        stream = b"".join(
            blake2b(tag + block.to_bytes(4, "big"), key=self._cipher_key).digest() for block in blocks
        )
        mixed = int.from_bytes(data, "big") ^ int.from_bytes(stream[: len(data)], "big")
        return mixed.to_bytes(len(data), "big")


def names_of(secret: str | None, *, composite: bool = False) -> Names:
    """By the setting: None hides nothing."""
    return Names(composite=composite) if secret is None else HiddenNames(secret, composite=composite)
