"""Writes the packages of an environment and the models as a software bill of materials.

    python scripts/write_sbom.py --output sbom.json [--python OTHER/bin/python]

CycloneDX 1.6, JSON. It needs nothing but Python, so it also runs in the image, which holds no
installer:

    docker run --rm --entrypoint python -v "$PWD/scripts":/scripts:ro sslmedsam2 \
        /scripts/write_sbom.py --system --weights /app/weights > sbom.json

With ``--system`` it also lists the packages of Debian or Ubuntu.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import re
import subprocess
import sys
import uuid
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from urllib.parse import quote

REPOSITORY = Path(__file__).resolve().parents[1]
_NAME_IN_REQUIREMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_LONGEST_LICENCE = 100
"""Some packages put the whole text of their licence where its name belongs."""
_DPKG_STATUS = Path("/var/lib/dpkg/status")


def normal(name: str) -> str:
    """Return a package's name as indices spell it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def licence_of(metadata: Any) -> list[dict[str, Any]]:
    """Return the licence as stated: an SPDX expression, a name, or nothing."""
    if expression := metadata.get("License-Expression"):
        return [{"expression": expression}]
    classifiers = metadata.get_all("Classifier") or []
    names = [one.split(" :: ")[-1] for one in classifiers if one.startswith("License :: ")]
    stated = (metadata.get("License") or "").strip()
    if not names and stated and len(stated) <= _LONGEST_LICENCE:
        names = [stated.splitlines()[0]]
    return [{"license": {"name": name}} for name in dict.fromkeys(names)]


def packages() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return all installed packages as components, and which needs which."""
    found = {normal(one.metadata["Name"]): one for one in importlib.metadata.distributions()}
    refs = {name: f"pkg:pypi/{name}@{one.version}" for name, one in sorted(found.items())}
    components, needs = [], []
    for name, ref in refs.items():
        one = found[name]
        component = {"type": "library", "bom-ref": ref, "name": name, "version": one.version}
        components.append({**component, "purl": ref, "licenses": licence_of(one.metadata)})
        wanted = (_NAME_IN_REQUIREMENT.match(text) for text in one.requires or ())
        names = sorted({normal(match[0]) for match in wanted if match} & refs.keys())
        needs.append({"ref": ref, "dependsOn": [refs[needed] for needed in names]})
    return components, needs


def system_packages(status: Path = _DPKG_STATUS) -> list[dict[str, Any]]:
    """Return the installed packages of Debian or Ubuntu; none on another system."""
    if not status.is_file():
        return []
    release = platform.freedesktop_os_release()
    components = []
    for paragraph in status.read_text(encoding="utf-8").split("\n\n"):
        fields = dict(re.findall(r"^([A-Z][A-Za-z-]*): (.*)$", paragraph, re.MULTILINE))
        if not fields.get("Status", "").endswith(" installed"):
            continue
        name, version = fields["Package"], fields["Version"]
        where = f"arch={fields['Architecture']}&distro={release['ID']}-{release['VERSION_ID']}"
        ref = f"pkg:deb/{release['ID']}/{name}@{quote(version, safe='~')}?{where}"
        component = {"type": "library", "bom-ref": ref, "name": name, "version": version}
        components.append({**component, "purl": ref})
    return components


def models(folder: Path) -> list[dict[str, Any]]:
    """Return every file of the models that a manifest lists, with its hash and licence."""
    path = folder / "manifest.json"
    if not path.is_file():
        return []
    manifest = json.loads(path.read_text(encoding="utf-8"))
    listed = [
        (f"{model['name']}/{file['path']}", file["sha256"], model["licence"])
        for model in manifest["models"]
        for file in model["files"]
    ]
    listed += [(file["path"], file["sha256"], "Apache-2.0") for file in manifest.get("sam2", ())]
    return [
        {
            "type": "machine-learning-model" if name.endswith((".pth", ".safetensors")) else "file",
            "bom-ref": f"weights/{name}",
            "name": f"weights/{name}",
            "hashes": [{"alg": "SHA-256", "content": sha256}],
            "licenses": [{"license": {"name": licence}}],
        }
        for name, sha256, licence in listed
    ]


def bill(weights: Path, *, system: bool) -> dict[str, Any]:
    """Return the whole bill of the environment that this script runs in."""
    components, needs = packages()
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid4()}",
        "version": 1,
        "metadata": {
            "timestamp": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "component": {"type": "application", "bom-ref": "sslmedsam2", "name": "SSL-MedSAM2"},
        },
        "components": [*components, *(system_packages() if system else ()), *models(weights)],
        "dependencies": needs,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="default: standard output")
    parser.add_argument("--python", help="list the packages of this interpreter")
    parser.add_argument("--weights", type=Path, default=REPOSITORY / "weights")
    parser.add_argument("--system", action="store_true", help="also packages of Debian or Ubuntu")
    options = parser.parse_args()
    if options.python:
        call = [options.python, __file__, "--weights", str(options.weights)]
        call += ["--system"] if options.system else []
        text = subprocess.run(call, check=True, capture_output=True, text=True).stdout
    else:
        text = (
            json.dumps(bill(options.weights, system=options.system), indent=2, ensure_ascii=False)
            + "\n"
        )
    if options.output is None:
        sys.stdout.write(text)
    else:
        options.output.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
