"""Ids hidden by a key: each comes back, none shows, and no other key opens them."""

import numpy as np
import pytest

from ebbtide.featurestore.errors import LayoutError
from ebbtide.featurestore.store.redis.names import TAG_BYTES, HiddenNames, Names, names_of

ODD = ["", "a", "ann", "x" * 128, "客" * 128, "new\nline\0", "é", "e\u0301", "🦊"]
HIDDEN = HiddenNames("k" * 32)


@pytest.mark.parametrize("customer", ODD)
def test_a_hidden_name_comes_back_and_does_not_show(customer: str) -> None:
    stored = HIDDEN.stored(customer)
    assert HIDDEN.customer(stored.encode()) == customer
    assert HIDDEN.stored(customer) == HiddenNames("k" * 32).stored(customer)
    assert stored.isascii()
    assert len(customer) < 3 or customer not in stored


def test_bytes_of_every_length_come_back() -> None:
    rng = np.random.default_rng(5)
    for length in [*range(200), 1_000, 4_096]:
        plain = rng.bytes(length)
        sealed = HIDDEN.sealed(plain)
        assert HIDDEN.opened(sealed) == plain
        assert len(sealed) == TAG_BYTES + length


def test_no_two_names_and_no_two_keys_give_the_same() -> None:
    names = [f"customer-{n}" for n in range(5_000)]
    assert len({HIDDEN.stored(name) for name in names}) == len(names)
    other = HiddenNames("l" * 32)
    assert other.id != HIDDEN.id
    assert not {HIDDEN.stored(name) for name in names} & {other.stored(name) for name in names}
    # Alike in their letters, they are in nothing alike behind the tag either.
    one, two = (HIDDEN.sealed(name.encode())[TAG_BYTES:] for name in ("customer-1", "customer-2"))
    assert sum(a == b for a, b in zip(one, two, strict=True)) < 5


@pytest.mark.parametrize("stored", [HiddenNames("l" * 32).stored("ann"), "ann", "", "####", "YW5u"])
def test_what_another_key_hid_is_refused(stored: str) -> None:
    with pytest.raises(LayoutError) as refused:
        HIDDEN.customer(stored.encode())
    assert "redis.customer_key" in refused.value.hint


def test_one_changed_bit_is_refused() -> None:
    sealed = HIDDEN.sealed(b"customer-77")
    for at in range(8 * len(sealed)):
        changed = bytearray(sealed)
        changed[at // 8] ^= 1 << at % 8
        with pytest.raises(LayoutError):
            HIDDEN.opened(bytes(changed))


def test_without_a_key_nothing_is_hidden() -> None:
    plain = names_of(None)
    assert type(plain) is Names
    assert (plain.stored("ann"), plain.customer(b"ann"), plain.id) == ("ann", "ann", "")
