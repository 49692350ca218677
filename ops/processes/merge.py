"""Expositions of several processes as one, each sample with a label that says whose it is. Pure text.

A family's samples stand together, as Prometheus demands: its words once, then every process's samples of it.
"""

from collections.abc import Mapping

LABEL = "process"


def merge(expositions: Mapping[str, str]) -> str:
    """By process: what it exposes in Prometheus' text format."""
    words: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for process, text in expositions.items():
        family = ""
        for line in text.splitlines():
            if line.startswith("#"):
                _, kind, family, *_ = line.split(" ", 3)
                said = words.setdefault(family, [])
                if len(said) < 2 and not any(each.split(" ", 2)[1] == kind for each in said):
                    said.append(line)
            elif line:
                samples.setdefault(family, []).append(labelled(line, process))
    lines = [line for family, said in words.items() for line in (*said, *samples.get(family, ()))]
    return "\n".join(lines) + "\n" if lines else ""


def labelled(sample: str, process: str) -> str:
    """A sample's line with the label in first place. A label's value may hold any sign, so nothing is split there."""
    own = f'{LABEL}="{process}"'
    name_end = next(at for at, sign in enumerate(sample) if sign in "{ ")
    if sample[name_end] == "{":
        rest = sample[name_end + 1 :]
        return f"{sample[:name_end]}{{{own}{'' if rest.startswith('}') else ','}{rest}"
    return f"{sample[:name_end]}{{{own}}}{sample[name_end:]}"
