"""The image's requirements with their hashes, made of pyproject.toml and constraints.txt: `python ops/image/lock.py`.

It asks the package index once, through uv. What it writes names versions and hashes and no address, so that any mirror
serves it, and pip refuses a wheel that is another one than it was when this was written.
"""

import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
LINUX = ("--python-version", "3.11", "--python-platform", "x86_64-manylinux_2_28", "--only-binary", ":all:")
SAYS = ("--generate-hashes", "--no-emit-index-url", "--no-annotate", "--no-header", "--quiet")


def wanted() -> dict[str, list[str]]:
    """By file: what it is made of."""
    text = (ROOT / "pyproject.toml").read_text()
    project, system = tomllib.loads(text)["project"], tomllib.loads(text)["build-system"]
    extras = project["optional-dependencies"]
    cpu = project["dependencies"] + extras["image"] + extras["traces"]
    return {"build": system["requires"], "cpu": cpu, "gpu": cpu + extras["gpu"]}


def locked(requirements: list[str]) -> dict[str, str]:
    """Package -> its lines: the version, and the hash of each of its wheels."""
    with tempfile.NamedTemporaryFile("w", suffix=".in") as file:
        file.write("\n".join(requirements))
        file.flush()
        uv = str(Path(sys.executable).with_name("uv"))
        said = subprocess.run(
            [uv, "pip", "compile", file.name, "-c", str(ROOT / "constraints.txt"), *SAYS, *LINUX],
            check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
    found: dict[str, str] = {}
    name = ""
    for line in said.splitlines(keepends=True):
        name = line.split("==")[0] if "==" in line else name
        found[name] = found.get(name, "") + line
    return found


def main() -> None:
    """Write the files; the GPU's holds what it adds to the CPU's."""
    found = {name: locked(requirements) for name, requirements in wanted().items()}
    found["gpu"] = {name: lines for name, lines in found["gpu"].items() if name not in found["cpu"]}
    for name, packages in found.items():
        (HERE / f"requirements-{name}.txt").write_text("".join(packages.values()))


if __name__ == "__main__":
    main()
