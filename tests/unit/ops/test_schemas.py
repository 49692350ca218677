"""The published schemas are what the models say, name themselves, and are open to what a later release adds."""

from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from click.testing import CliRunner
from jsonschema import Draft202012Validator

from ebbtide.ops.commands.schema import SCHEMAS, command, text
from ebbtide.stream.outputs.dead_letter import (
    BYTES_MAX,
    Position,
    dead_letter_of,
    dead_letter_schema,
)
from ebbtide.stream.outputs.scores import score_message, score_schema
from tests.support.seams.streams import LogRecord

PUBLISHED = Path(__file__).parents[3] / "ops" / "schemas"


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_published_schema_is_the_models_own(name: str) -> None:
    assert (PUBLISHED / f"{name}.json").read_text(encoding="utf-8") == text(SCHEMAS[name]()), (
        "a contract changed: is it only wider? Then `ebbtide schema write ops/schemas`"
    )


def test_the_command_writes_what_it_prints(tmp_path: Path) -> None:
    assert CliRunner().invoke(command, ["write", str(tmp_path)]).exit_code == 0
    for name in SCHEMAS:
        printed = CliRunner().invoke(command, [name])
        assert printed.output == (tmp_path / f"{name}.json").read_text(encoding="utf-8")


def test_every_schema_has_a_name_of_its_own_and_is_open() -> None:
    schemas = [schema() for schema in SCHEMAS.values()]
    assert len({schema["$id"] for schema in schemas}) == len(SCHEMAS)

    def closed(part: Any) -> bool:
        if isinstance(part, dict):
            return part.get("additionalProperties") is False or any(map(closed, part.values()))
        return isinstance(part, list) and any(map(closed, part))

    for schema in schemas:
        Draft202012Validator.check_schema(schema)
        assert not closed(schema), schema["$id"]


def test_dead_letters_fit_their_schema() -> None:
    """Whole, without a value, and with a value that did not fit."""
    validator = Draft202012Validator(dead_letter_schema())
    for value, room in ((b"{", BYTES_MAX), (None, BYTES_MAX), (b"x" * 5_000, 2_000)):
        record = LogRecord(9, 1_700_000_000_000, b"ann", value)
        letter = dead_letter_of(
            record, Position("clicks", 0, 9), "not_json", "no", topic="bad", bytes_max=room
        )
        headers = {name: (said or b"").decode() for name, said in letter.headers}
        validator.validate(headers)
        assert not validator.is_valid({**headers, "ebbtide-offset": "nine"})


def test_scores_fit_their_schema() -> None:
    message = score_message("scores", "ann", 5, "event", np.float32(0.1), 3, 0, -1)
    assert message.value is not None
    said = orjson.loads(message.value)
    Draft202012Validator(score_schema()).validate({**said, "more": 1})
    assert not Draft202012Validator(score_schema()).is_valid({**said, "p": 1.5})
