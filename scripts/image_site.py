"""What a build needs to know of the machine that it runs on: `python image_site.py FOLDER`.

Reads, now, how this machine reaches its package sources, and writes into FOLDER

- ``ca.pem`` and ``pip.conf``, the optional secrets of the Dockerfile, and ``sources.list``;
- ``build-options``: options for ``build_image.sh``, one a line;
- ``forbidden.json``: the addresses, paths and certificates that the image must not hold.
"""

from __future__ import annotations

import ast
import functools
import json
import os
import re
import socket
import subprocess
import sys
import urllib.parse
import urllib.request
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
SYSTEM_BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
PACKAGED_CERTIFICATES = Path("/usr/share/ca-certificates")
BUNDLE_VARIABLES = ("PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
PROXY_VARIABLES = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
PIP_OPTIONS = (
    "index-url", "extra-index-url", "find-links", "no-index", "proxy", "timeout", "trusted-host",
)  # fmt: skip
SHORTEST_SEARCHED = 6
"""A shorter name would be found in any gigabyte of libraries."""


def main() -> None:
    """Write the files."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    pip, sources, bundle = pip_options(), apt_sources(), bundle_of_certificates()
    local = local_folders(pip)
    (folder / "pip.conf").write_text(pip_conf(pip))
    (folder / "sources.list").write_text("".join(f"{line}\n" for line in sources))
    options = ["--secret", f"id=pipconf,src={folder / 'pip.conf'}"]
    if bundle is not None:
        (folder / "ca.pem").write_bytes(bundle.read_bytes())
        options += ["--secret", f"id=ca,src={folder / 'ca.pem'}"]
    for path in local:
        options += ["--volume", f"{path}:{path}:ro"]
    if sources:
        options += ["--volume", f"{folder / 'sources.list'}:/etc/apt/sources.list:ro"]
    if any(found for path in local for found in path.glob("torch-*+cpu-*.whl")):
        # pip finds a CPU build here, without PyTorch's own index.
        options += ["--build-arg", "TORCH_INDEX="]
    (folder / "build-options").write_text("".join(f"{option}\n" for option in options))
    forbidden = {
        "strings": forbidden_strings(pip, sources, local),
        "certificates": [] if bundle is None else own_certificates(bundle),
    }
    (folder / "forbidden.json").write_text(json.dumps(forbidden, indent=2))


def pip_options() -> dict[str, str]:
    """Return what pip is configured to here; the environment goes before the files."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    found: dict[str, str] = {}
    for line in listed.splitlines():
        key, _, value = line.partition("=")
        section, _, option = key.rpartition(".")
        if option in PIP_OPTIONS and (option not in found or section == ":env:"):
            found[option] = ast.literal_eval(value)
    return found


def pip_conf(options: dict[str, str]) -> str:
    """Return the options as a configuration file."""
    lines = (f"{name} = {' '.join(value.split())}\n" for name, value in options.items())
    return "[global]\n" + "".join(lines)


def local_folders(pip: dict[str, str]) -> list[Path]:
    """Return the folders that pip takes packages from; an index links to files beside it."""
    folders = {Path(word) for word in pip.get("find-links", "").split() if word.startswith("/")}
    for option in ("find-links", "index-url", "extra-index-url"):
        for word in pip.get(option, "").split():
            if word.startswith("file://"):
                path = Path(urllib.request.url2pathname(urllib.parse.urlsplit(word).path))
                folders.add(path.parent if path.name == "simple" else path)
    return sorted(folder for folder in folders if folder.is_dir())


def apt_sources() -> list[str]:
    """Return this machine's own package sources, one line each; none where there is no apt."""
    fields = "$(REPO_URI) $(RELEASE) $(COMPONENT)"
    command = ["apt-get", "indextargets", "--format", fields, "Identifier: Packages"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return []
    # Only those of the distribution: a vendor's source may want a key that the base has not.
    release = _os_release("VERSION_CODENAME")
    rows = sorted({tuple(line.split()) for line in done.stdout.splitlines()})
    return [
        f"deb {uri.rstrip('/')} {suite} {component}"
        for uri, suite, component in (row for row in rows if len(row) == 3)
        if suite.split("-")[0] == release and component == "main"
    ]


def bundle_of_certificates() -> Path | None:
    """Return the file of certificates that programs trust here."""
    named = [Path(os.environ[name]) for name in BUNDLE_VARIABLES if os.environ.get(name)]
    return next((path for path in [*named, SYSTEM_BUNDLE] if path.is_file()), None)


def forbidden_strings(pip: dict[str, str], sources: list[str], local: list[Path]) -> list[str]:
    """Return host names and paths of this machine."""
    addresses = [word for option in pip.values() for word in option.split() if "://" in word]
    addresses += [os.environ[name] for name in PROXY_VARIABLES if os.environ.get(name)]
    addresses += [line.split()[1] for line in sources]
    hosts = {urllib.parse.urlsplit(address).hostname or "" for address in addresses}
    hosts |= {socket.gethostname(), *pip.get("trusted-host", "").split()}
    paths = {str(path) for path in (REPOSITORY, *local)}
    own = {host for host in hosts if not is_public(host)}
    return sorted(text for text in own | paths if len(text) >= SHORTEST_SEARCHED)


def is_public(host: str) -> bool:
    """Return whether a host is known everywhere: pip, the build or the distribution name it."""
    home = urllib.parse.urlsplit(_os_release("HOME_URL")).hostname or ""
    if home and f".{host}".endswith(f".{home.removeprefix('www.')}"):
        return True
    known = _public_text()
    return host.startswith("localhost") or f"//{host}" in known or f'"{host}"' in known


@functools.cache
def _public_text() -> str:
    import pip

    files = [*Path(pip.__file__).parent.rglob("*.py"), *REPOSITORY.glob("scripts/*.sh")]
    return "".join(path.read_text(encoding="utf-8", errors="replace") for path in files)


def own_certificates(bundle: Path) -> list[str]:
    """Return a line of the body of each certificate that no distribution ships."""
    public = b"".join(path.read_bytes() for path in PACKAGED_CERTIFICATES.rglob("*.crt"))
    try:
        import certifi
    except ImportError:
        pass
    else:
        public += Path(certifi.where()).read_bytes()
    known = set(_bodies(public))
    return [_telling_line(body) for body in _bodies(bundle.read_bytes()) if body not in known]


def _bodies(pem: bytes) -> list[str]:
    found = re.findall(rb"-----BEGIN CERTIFICATE-----(.*?)-----END", pem, re.DOTALL)
    return ["".join(body.decode("ascii").split()) for body in found]


def _telling_line(body: str) -> str:
    """Return a full line of 64 characters from the key, as it stands in a file."""
    middle = len(body) // 2 // 64 * 64
    return body[middle : middle + 64]


def _os_release(name: str) -> str:
    text = Path("/etc/os-release").read_text(encoding="utf-8")
    match = re.search(rf'^{name}="?([^"\n]*)', text, re.MULTILINE)
    return match[1] if match else ""


if __name__ == "__main__":
    main()
