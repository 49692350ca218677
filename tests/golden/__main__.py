"""Writes `golden.json` anew. Refuses while bytes have changed under an unchanged layout id."""

import json
import re
import sys

from tests.golden import (
    FILE,
    MADE,
    SHIPPED,
    events_of,
    features_of,
    problem_of,
    read,
    spec_of,
    vector,
    versions,
)


def main() -> None:
    if FILE.exists():
        problems = [problem_of(name, kept) for name, kept in read()["specs"].items()]
        if refused := [problem for problem in problems if "raise FOLD_VERSION" in problem]:
            sys.exit("\n".join(refused))
    specs = {}
    for name in (*MADE, *SHIPPED):
        spec = spec_of(name)
        events = events_of(spec)
        specs[name] = {"events": events, **vector(spec, events), "features": features_of(spec, events)}
    lines = re.sub(
        r"\n {5}\s*|\n {4}(?=[\]}])", " ", json.dumps({"versions": versions(), "specs": specs}, indent=1)
    )
    FILE.write_text(lines + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
