"""The web app's files: which there are, where they come from, how they are served, and what is refused."""

from __future__ import annotations

import hashlib
import http.client
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest

from snapgen_deploy.apps.npm import HF_TOKENIZERS, package_files
from snapgen_deploy.apps.registry import app_folder, app_of, write_app
from snapgen_deploy.apps.serving import HEADERS, serving
from snapgen_deploy.apps.site import POLICY, Site, site_of
from snapgen_deploy.bundle.reader import CONFORMANCE, Bundle, open_bundle
from snapgen_deploy.errors import BadInput
from tests.apps.conftest import OWN_CACHE
from tests.cli.conftest import invoke

HOST = "127.0.0.1"


@pytest.fixture
def own_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", OWN_CACHE)


def content(site: Site, name: str) -> bytes:
    found = site.files[name]
    return found if isinstance(found, bytes) else found.read_bytes()


def test_a_site_has_the_hash_of_every_file(site: Site, bundle: Path) -> None:
    about = json.loads(content(site, "site.json"))
    manifest = json.loads(content(site, "bundle/manifest.json"))
    tables = [manifest["files"], *(c["files"] for c in manifest["targets"]["onnx:web"]["components"].values())]
    hashes = {f"bundle/{name}": entry["sha256"] for table in tables for name, entry in table.items()}
    hashes |= {n: e["sha256"] for n, e in about["files"].items()} | {"bundle/manifest.json": about["bundle"]["sha256"]}
    worker = content(site, "sw.js").decode()
    shell = json.loads(worker[worker.index("SHELL = ") + 8 : worker.index("};") + 1])
    unnamed = set(site.files) - set(hashes) - set(shell)
    assert unnamed == {"sw.js", "README.md"}  # a browser compares the one with what it has; nothing loads the other
    for name, digest in (hashes | shell).items():
        if name in site.files:
            assert hashlib.sha256(content(site, name)).hexdigest() == digest, name
    assert f'"{about["cache"]}"' in worker
    assert not [name for name in shell if name.endswith(".wasm")]


def test_a_page_has_no_inline_script_and_no_placeholder(site: Site) -> None:
    page = content(site, "index.html").decode()
    assert "'unsafe-inline'" not in POLICY
    assert "<style" not in page
    assert page.count("<script") == 1
    assert " on" not in "".join(part.partition(">")[0].split('"')[0] for part in page.split("<")[1:])
    for name in ("index.html", "sw.js", "README.md"):
        assert not [w for w in ("@TITLE@", "@POLICY@", "@SITE@", "@SHELL@", "@PACKAGES@") if w in content(site, name).decode()]
    assert "tiny-test" in page
    assert "onnxruntime-web 1.30.0 (MIT)" in content(site, "README.md").decode()


@pytest.fixture
def port(site: Site) -> Iterator[int]:
    with serving(site, 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def ask(port: int, path: str, method: str = "GET", host: str | None = None) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection(HOST, port, timeout=20)
    connection.putrequest(method, path, skip_host=True)
    connection.putheader("Host", host or f"{HOST}:{port}")
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer, body


def test_a_server_gives_files_of_the_site_and_nothing_else(site: Site, port: int) -> None:
    kinds = {
        "/": "text/html; charset=utf-8",
        "/main.mjs": "text/javascript; charset=utf-8",
        "/sw.js": "text/javascript; charset=utf-8",
        "/lib/ort-wasm-simd-threaded.wasm": "application/wasm",
        "/bundle/onnx-web/student.onnx": "application/octet-stream",
        "/site.json?x=1": "application/json",
    }
    for path, kind in kinds.items():
        answer, body = ask(port, path)
        name = path.partition("?")[0].removeprefix("/") or "index.html"
        assert (answer.status, answer.headers["Content-Type"], body) == (200, kind, content(site, name))
        assert {key: answer.headers[key] for key in HEADERS} == dict(HEADERS)
    answer, body = ask(port, "/bundle/onnx-web/student.onnx", "HEAD")
    assert (answer.headers["Content-Length"], body) == (str(len(content(site, "bundle/onnx-web/student.onnx"))), b"")
    outside = ("/../conftest.py", "/bundle/../../../etc/passwd", "/%2e%2e/etc/passwd", "//etc/passwd")
    for path in (*outside, "/bundle/SHA256SUMS", "/x"):
        assert ask(port, path)[0].status == 404, path
    assert ask(port, "/", host="evil.example:80")[0].status == 403
    assert ask(port, "/", "POST")[0].status == 501


def test_a_port_that_is_taken(site: Site, port: int) -> None:
    with pytest.raises(BadInput, match=f"--port {port}: cannot be listened on"), serving(site, port):
        pass


def test_an_app_is_written_whole_or_not_at_all(bundle: Path, tmp_path: Path, site: Site, own_cache: None) -> None:
    opened, kind, folder = open_bundle(bundle), app_of("web"), tmp_path / "app"
    write_app(kind, opened, folder)
    assert {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} == set(site.files)
    with pytest.raises(BadInput, match="exists; give another place with --output, or --overwrite"):
        write_app(kind, opened, folder)
    (folder / "left.txt").touch()
    write_app(kind, opened, folder, overwrite=True)
    assert not (folder / "left.txt").exists()
    other = tmp_path / "mine"
    other.mkdir()
    with pytest.raises(BadInput, match="is no app of a bundle, so it is not replaced"):
        write_app(kind, opened, other, overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["app", "mine"]
    assert app_folder(Path("bundles/a-web"), "web") == Path("bundles/a-web-app-web")
    with pytest.raises(BadInput, match="unknown app 'gameboy': expected web, triton, android, ios"):
        app_of("gameboy")


def test_what_a_page_cannot_draw_with_is_refused(bundle: Path, tmp_path: Path) -> None:
    opened = open_bundle(bundle)

    def changed(**changes: object) -> Bundle:
        return replace(opened, manifest={**opened.manifest, **changes})

    config = opened.manifest["config"]
    for wrong, said in (
        (changed(targets={}, target_order=[]), "holds no onnx:web, which a page draws with: export with --device web"),
        (changed(noise={"generator": "torch"}), "with noise of torch, which a page cannot make"),
        (changed(config={**config, "decoder": None}), "has no decoder"),
        (changed(config={**config, "text_encoder": None}), "no text encoder of it makes the text stream text"),
        (Bundle(tmp_path, opened.manifest), f"has no {CONFORMANCE}"),
    ):
        with pytest.raises(BadInput, match=said):
            site_of(wrong)


def test_a_package_is_one_release(tmp_path: Path) -> None:
    said = r"huggingface-tokenizers-0\.2\.0\.tgz cannot be had \(No such file or directory\); run `npm pack"
    with pytest.raises(BadInput, match=said):
        package_files(HF_TOKENIZERS, tmp_path)
    (tmp_path / HF_TOKENIZERS.archive).write_bytes(b"another")
    with pytest.raises(BadInput, match=r"is not the release that npm published as 0\.2\.0"):
        package_files(HF_TOKENIZERS, tmp_path)


@pytest.mark.parametrize(
    ("npm", "said"),
    [
        ("", r"npm is not installed; it is part of Node\.js"),
        ("echo 'npm error code E404' >&2; echo 'npm error 404 Not Found' >&2; exit 1", "npm error 404 Not Found"),
        ("exit 3", "npm ended with status 3"),
        ("exit 0", "No such file or directory"),
    ],
)
def test_an_npm_that_fetches_nothing_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, npm: str, said: str) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))
    if npm:
        (tmp_path / "npm").write_text(f"#!/bin/sh\n{npm}\n")
        (tmp_path / "npm").chmod(0o755)
    with pytest.raises(BadInput, match=rf"cannot be had \({said}\); run `npm pack") as raised:
        package_files(HF_TOKENIZERS)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "cache").exists()


def test_commands_write_and_serve(
    bundle: Path, tmp_path: Path, own_cache: None, packages: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = invoke("bundle", "app", bundle, "web", "-o", tmp_path / "site")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "site" / "bundle" / "manifest.json").read_bytes() == (bundle / "manifest.json").read_bytes()

    def interrupted(self: object, poll_interval: float = 0.5) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ThreadingHTTPServer, "serve_forever", interrupted)
    done = invoke("serve", bundle, "--port", 0)
    assert done.exit_code == 0, done.output
    assert re.search(r"open http://127\.0\.0\.1:\d+/", done.output)
    done = invoke("export", "--device", "server", "--app", "web", "--dry-run")
    assert done.exit_code == 2
    assert "--app web draws with onnx:web, which is not exported: add --target onnx:web" in " ".join(done.stderr.split())
