"""Publish the results as a static site, asv_bench/html, that loads nothing from elsewhere.

asv's page loads its libraries from content delivery networks. Up to version 0.5.1 asv brought the
same libraries along; they are taken from that release.
"""

import argparse
import hashlib
import io
import json
import pathlib
import re
import shlex
import subprocess
import sys
import tarfile
import urllib.request

HERE = pathlib.Path(__file__).resolve().parent
RELEASE = (
    "https://files.pythonhosted.org/packages/5b/e4/"
    "f4af30aa6e75c12832f3d61cd07610510e2e47aaa1547513f4a51dd335b1/asv-0.5.1.tar.gz"
)
SHA256 = "805fc3cc46c0bcf3e7baeaa16a12e4b92f1276c25490db4cb80fc541afa52bfc"
VENDOR = "asv-0.5.1/asv/www/vendor/"
REMOTE = re.compile(r'(src|href)="https?://[^"]+/([^"/]+\.(?:js|css))"[^>]*?(?=>| onerror=)')


def release():
    """The old release, downloaded once."""
    path = HERE / "vendor" / pathlib.PurePosixPath(RELEASE).name
    if path.exists():
        archive = path.read_bytes()
    else:
        try:
            with urllib.request.urlopen(RELEASE, timeout=60) as response:
                archive = response.read()
        except OSError as error:
            sys.exit(f"{RELEASE}: {error}")
    digest = hashlib.sha256(archive).hexdigest()
    if digest != SHA256:
        sys.exit(f"{path.name}: expected sha256 {SHA256}, got {digest}")
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(archive)
    return tarfile.open(fileobj=io.BytesIO(archive))


def plain(name):
    """A library's file name without version and minification, which differ between releases."""
    return re.sub(r"-\d[\d.]*\d|\.min", "", name)


def localise(html):
    """Put the libraries beside the page, and have it load those."""
    with release() as archive:
        files = {
            member.name.removeprefix(VENDOR): archive.extractfile(member).read()
            for member in archive
            if member.isfile() and member.name.startswith(VENDOR)
        }
    local = {plain(name): name for name in files}

    def beside(match):
        attribute, name = match.groups()
        if plain(name) not in local:
            sys.exit(f"asv's page loads {name}; {RELEASE} has only {', '.join(sorted(local))}")
        used = local[plain(name)]
        (html / "vendor" / used).write_bytes(files[used])
        return f'{attribute}="vendor/{used}"'

    (html / "vendor").mkdir()
    page = html / "index.html"
    page.write_text(REMOTE.sub(beside, page.read_text()))


def complete(html):
    """An empty graph for each benchmark without results: the page asks for one of every name."""
    for name in json.loads((html / "index.json").read_text())["benchmarks"]:
        graph = html / "graphs" / "summary" / f"{name}.json"
        if not graph.exists():
            graph.parent.mkdir(parents=True, exist_ok=True)
            graph.write_text("[]")


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--html-dir", type=pathlib.Path, default=HERE / "html")
    html = parser.parse_args().html_dir.resolve()
    publish = [sys.executable, "-m", "asv", "publish", "--html-dir", str(html)]
    if subprocess.run(publish, cwd=HERE).returncode:
        sys.exit("asv publish failed")
    localise(html)
    complete(html)
    serve = [sys.executable, "-m", "http.server", "--bind", "localhost", "--directory", str(html)]
    print(f"\nThe dashboard is in {html}. To open it, run\n\n    {shlex.join(serve)}\n")
    print("and visit http://localhost:8000/")


if __name__ == "__main__":
    main()
