"""A spec's file: whatever is wrong with it is one error that names the file."""

from pathlib import Path

import pytest

from ebbtide.featurestore.errors import SpecError
from ebbtide.featurestore.spec import load_spec


@pytest.mark.parametrize(
    "text",
    [
        "when: 2026-99-99",
        "memory: !!int x",
        "name: [",
        "name: *nobody",
        "x: !!python/object:a.b {}",
        "a: !!float x",
    ],
)
def test_a_file_that_yaml_cannot_read_names_itself(tmp_path: Path, text: str) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text(text + "\n")
    with pytest.raises(SpecError, match=r"broken\.yaml is not YAML"):
        load_spec(file)


def test_a_file_that_is_no_text_names_itself(tmp_path: Path) -> None:
    file = tmp_path / "broken.yaml"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SpecError, match=r"broken\.yaml"):
        load_spec(file)
    with pytest.raises(SpecError, match=r"absent\.yaml"):
        load_spec(tmp_path / "absent.yaml")
