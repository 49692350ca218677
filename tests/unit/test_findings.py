"""The table of findings names tests that are there."""

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
TABLE = TESTS / "FINDINGS.md"
REFERENCE = re.compile(r"`((?:unit|integration|contract|e2e|chaos|support)/[\w/.]+)?(?:::(\w+))?`")


def references() -> list[tuple[str, str]]:
    """(file, name of a test or ""); a name without a file is of the last file named in its row."""
    found = []
    for row in TABLE.read_text(encoding="utf-8").splitlines():
        file = ""
        for match in REFERENCE.finditer(row):
            file = match[1] or file
            if match[1] or match[2]:
                found.append((file, match[2] or ""))
    return found


def test_each_test_of_the_findings_is_there() -> None:
    """A finding whose test was renamed or taken away says so here."""
    named, missing = references(), []
    for file, name in named:
        path = TESTS / file if "." in file or file.endswith("/") else TESTS / f"{file}.py"
        if not path.exists() or (name and f"def test_{name}(" not in path.read_text(encoding="utf-8")):
            missing.append(f"{file}::{name}")
    assert missing == []
    assert len(named) > 100


def test_each_finding_has_a_test_or_says_why_not() -> None:
    """A to D of the review, by number, and the cases; T means that a test is named in the row."""
    rows = [
        [cell.strip() for cell in row.split("|")[1:-1]]
        for row in TABLE.read_text().splitlines()
        if row[:2] == "| "
    ]
    found = [row for row in rows if row[0] not in ("finding", "case")]
    numbers = {row[0].split()[0] for row in found}
    wanted = {
        f"{part}{n}" for part, last in zip("ABCD", (10, 14, 6, 11), strict=True) for n in range(1, last + 1)
    }
    assert wanted <= numbers
    assert [row[0] for row in found if row[1] not in ("T", "D", "P", "O", "R")] == []
    assert [row[0] for row in found if row[1] == "T" and "::" not in row[2]] == []
