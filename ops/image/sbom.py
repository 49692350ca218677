"""What is inside, as a CycloneDX document: `python sbom.py SITE-PACKAGES > sbom.json`, of what is installed there.

Of the metadata alone, without asking anybody; so it also holds for an image that was built elsewhere.
"""

import json
import sys
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any


def component(found: Distribution) -> dict[str, Any]:
    """One package: name, version, package URL, licence as it says itself."""
    name, version = found.metadata["Name"], found.version
    told = found.metadata.json
    said = str(told.get("license_expression") or told.get("license") or "").strip()
    licences = [{"license": {"name": said.splitlines()[0][:100]}}] if said else []
    purl = f"pkg:pypi/{name.lower().replace('_', '-')}@{version}"
    return {
        "type": "library",
        "name": name,
        "version": version,
        "purl": purl,
        "bom-ref": purl,
        "licenses": licences,
    }


def document(site: Path) -> dict[str, Any]:
    """Of all packages below, by name."""
    found = sorted(distributions(path=[str(site)]), key=lambda each: each.metadata["Name"].lower())
    about = {"component": {"type": "container", "name": "ebbtide"}}
    components = [component(each) for each in found]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": about,
        "components": components,
    }


if __name__ == "__main__":
    print(json.dumps(document(Path(sys.argv[1])), indent=2))
