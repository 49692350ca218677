"""A worker under record batches that were written by hand, as any client may send them: none ends it, none is lost."""

import random
from pathlib import Path

import pytest

from tests.fuzz.serving import fuzz_worker
from tests.fuzz.wire import RECIPES

pytestmark = [pytest.mark.kafka, pytest.mark.redis, pytest.mark.slow]


@pytest.mark.timeout(400)
async def test_no_batch_of_any_client_ends_a_worker(tmp_path: Path) -> None:
    """Header names of any bytes, odd keys, no timestamps, every codec, what inflates; control batches and lies, which
    the broker refuses. The worker's counts are the parser's, to the record, and it is ready in the end."""
    seed = random.SystemRandom().randrange(2**31)
    print(f"seed {seed}")
    found = await fuzz_worker(seed, 200, 200, 0, tmp_path)
    assert found.wrong == []
    assert len(found.batches) == len(RECIPES)
    assert found.refused.keys() == {"control", "lies"}
    assert found.counts["events"] > 100
