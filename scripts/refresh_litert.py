"""Rebuilds kmed/deployment/webapp/litert, the LiteRT.js of `kmed demo`'s pages, from the pinned npm packages.

python scripts/refresh_litert.py            # needs npm and the network; the same versions give the same bytes
python scripts/refresh_litert.py --check    # compares instead of writing

To use a newer version, change the versions and integrity hashes below (`npm view @litertjs/core dist.integrity`).
"""

import base64
import hashlib
import json
import pathlib
import subprocess
import sys
import tarfile
import tempfile

import click

ROOT = pathlib.Path(__file__).resolve().parent.parent
TARGET = ROOT / "kmed" / "deployment" / "webapp" / "litert"

PACKAGES = {
    "@litertjs/core": (
        "2.5.3",
        "sha512-PlGmbMOq9WitX7FO0jhbdJw9GthatsyuCQXjTt/wJZo0FLaw48q4tz8IwqgqCIkviYGr9OFDL1kCnN4nzWoyJQ==",
    ),
    "@litertjs/wasm-utils": (
        "2.5.3",
        "sha512-4fJiw6tBQnIs+0jH/OQ16nYOiSl8/+zZnn5h2ul8aTKHi05sVqZW580Tmk78pC2kT39A9OYBVdFawteZ/sI1kQ==",
    ),
}
# {(package, its file): the file in TARGET}. Of the four WASM builds, this one needs the fewest browser features.
FILES = {
    ("@litertjs/core", "dist/index.js"): "litert.js",
    ("@litertjs/wasm-utils", "dist/index.js"): "wasm-utils.js",
    ("@litertjs/core", "wasm/litert_wasm_compat_internal.js"): "litert_wasm_compat_internal.js",
    ("@litertjs/core", "wasm/litert_wasm_compat_internal.wasm"): "litert_wasm_compat_internal.wasm",
}
# The changes in litert.js: (reason, old text, new text); each old text must occur once.
CHANGES = [
    ("a browser finds the other file without a bundler", 'from "@litertjs/wasm-utils"', 'from "./wasm-utils.js"'),
    (
        "no GPU is asked for: the page computes on the CPU",
        "await Environment.create()",
        "await Environment.create({ webGpuDevice: null })",
    ),
]


@click.command()
@click.option("--check", is_flag=True, help="Compare instead of writing; exit code 1 if a byte differs.")
def main(check):
    """Fetches, verifies, changes and writes the files, with VERSION and LICENSE."""
    with tempfile.TemporaryDirectory() as folder:
        archives = {name: fetch(name, *pin, folder) for name, pin in PACKAGES.items()}
        files = {target: read(archives[name], path) for (name, path), target in FILES.items()}
    files["litert.js"] = change(files["litert.js"].decode()).encode()
    files["wasm-utils.js"] = without_source_map(files["wasm-utils.js"].decode()).encode()
    files["LICENSE"] = (ROOT / "LICENSE").read_bytes()  # the packages name Apache-2.0, but contain no copy of it
    files["VERSION"] = version(files).encode()
    if check:
        different = [name for name, content in files.items() if (TARGET / name).read_bytes() != content]
        click.echo(f"Different: {', '.join(different)}" if different else f"All {len(files)} files are the same.")
        sys.exit(1 if different else 0)
    TARGET.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (TARGET / name).write_bytes(content)
        click.echo(f"{len(content):>10,} bytes  {name}")


def fetch(name: str, number: str, integrity: str, folder: str) -> bytes:
    """Returns the package's archive from npm; ends the program if its SHA-512 is not the pinned one."""
    command = ["npm", "pack", f"{name}@{number}", "--json", "--pack-destination", folder]
    packed = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    archive = (pathlib.Path(folder) / packed[0]["filename"]).read_bytes()
    found = "sha512-" + base64.b64encode(hashlib.sha512(archive).digest()).decode()
    if found != integrity:
        sys.exit(f"{name}@{number} is not the pinned file: {found} instead of {integrity}.")
    return archive


def read(archive: bytes, path: str) -> bytes:
    """Returns a file of an npm archive."""
    with tempfile.TemporaryFile() as file:
        file.write(archive)
        file.seek(0)
        with tarfile.open(fileobj=file, mode="r:gz") as opened:
            return opened.extractfile(f"package/{path}").read()


def change(text: str) -> str:
    """Returns litert.js with CHANGES applied and listed at its top, as its licence requires."""
    for _, old, new in CHANGES:
        if text.count(old) != 1:
            sys.exit(f"litert.js holds {old!r} {text.count(old)} times instead of once. Look at CHANGES again.")
        text = text.replace(old, new)
    changes = "".join(f"//   {new}: {reason}\n" for reason, _, new in CHANGES)
    head = f"// @litertjs/core {PACKAGES['@litertjs/core'][0]}, Copyright 2025 Google LLC, Apache-2.0.\n"
    return f"{head}// Changed for kmed by scripts/refresh_litert.py:\n{changes}\n{without_source_map(text)}"


def without_source_map(text: str) -> str:
    """Returns the text without the comment that names a source map, which is not shipped."""
    kept = [line for line in text.splitlines() if not line.startswith("//# sourceMappingURL=")]
    return "\n".join(kept) + "\n"


def version(files: dict[str, bytes]) -> str:
    """Returns the content of VERSION: the origin of the files, and their SHA-256."""
    packages = {name: {"version": number, "integrity": integrity} for name, (number, integrity) in PACKAGES.items()}
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in sorted(files.items())}
    facts = {"name": "LiteRT.js", "license": "Apache-2.0", "packages": packages, "changed": ["litert.js"]}
    return json.dumps(facts | {"sha256": sums}, indent=2) + "\n"


if __name__ == "__main__":
    main()
