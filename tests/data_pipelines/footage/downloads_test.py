"""Models by name: downloads from a server on this machine, and what can go wrong."""

import hashlib
import http.server
import io
import json
import socket
import sys
import threading
import zipfile

import pytest

from data_pipelines.errors import InputError
from data_pipelines.footage import downloads

ONNX = b"\x08\x09 the bytes of a model" * 1000


def zipped(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__", "/").replace("_", "."), content)
    return file.getvalue()


class Server(http.server.ThreadingHTTPServer):
    """Serves `content`, by path; remembers what was requested."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content: dict[str, bytes] = {}
        self.missing_bytes = 0  # which are announced and not sent
        self.requests: list[str] = []
        self.address = f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.requests.append(self.path)
        if self.path not in self.server.content:
            self.send_error(404)
            return
        content = self.server.content[self.path]
        self.send_response(200)
        self.send_header("Content-Length", str(len(content) + self.server.missing_bytes))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv(downloads.CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def find(server, path: str, content: bytes | None, sha256: str | None = None):
    """Returns what `find_model` finds for the name `small`, of this content on the server."""
    server.content = {} if content is None else {path: content}
    download = downloads.Download(f"{server.address}{path}", "MIT", sha256)
    return downloads.find_model("small", {"small": download, "large": download}, "--model")


@pytest.mark.parametrize("published", [True, False])
def test_a_name_is_downloaded_once(server, cache, capsys, published):
    sha256 = hashlib.sha256(ONNX).hexdigest() if published else None
    path = find(server, "/a/model.onnx", ONNX, sha256)
    assert path == cache / "small.onnx"
    assert path.read_bytes() == ONNX
    log = capsys.readouterr().err
    assert log == f"downloading {server.address}/a/model.onnx (license: MIT)\n"
    assert find(server, "/a/model.onnx", None, sha256) == path
    assert server.requests == ["/a/model.onnx"]
    assert capsys.readouterr().err == ""
    assert sorted(file.name for file in cache.iterdir()) == ["small.json", "small.onnx"]


def test_of_an_archive_only_the_model_is_taken(server, cache, tmp_path):
    content = zipped(____escaped_onnx=ONNX, deploy_json=b"{}")  # ../../escaped.onnx
    assert find(server, "/model.zip", content).read_bytes() == ONNX
    assert find(server, "/model.zip", None).read_bytes() == ONNX
    assert sorted(file.name for file in cache.iterdir()) == ["small.json", "small.onnx"]
    assert [file.name for file in tmp_path.iterdir()] == ["cache"]


def test_a_changed_file_is_downloaded_again_and_held_against_the_first(server, cache):
    path = find(server, "/model.onnx", ONNX)
    path.write_bytes(ONNX[:-1])
    assert find(server, "/model.onnx", ONNX) == path
    assert path.read_bytes() == ONNX
    assert len(server.requests) == 2
    path.write_bytes(ONNX[:-1])
    with pytest.raises(InputError, match=rf"does not match.*remove {cache}/small.json; download"):
        find(server, "/model.onnx", ONNX + b"another")
    assert path.read_bytes() == ONNX[:-1]
    (cache / "small.json").unlink()
    assert find(server, "/model.onnx", ONNX + b"another").read_bytes() == ONNX + b"another"


def test_another_address_of_the_same_name_is_another_file(server):
    find(server, "/model-1.onnx", ONNX)
    assert find(server, "/model-2.onnx", ONNX + b"2").read_bytes() == ONNX + b"2"


@pytest.mark.parametrize("record", [b"", b"[]", b'{"url": 3}', b"\xff"])
def test_a_broken_record_is_replaced(server, cache, record):
    find(server, "/model.onnx", ONNX)
    (cache / "small.json").write_bytes(record)
    find(server, "/model.onnx", ONNX)
    assert len(server.requests) == 2
    digest = hashlib.sha256(ONNX).hexdigest()
    assert json.loads((cache / "small.json").read_bytes())["sha256"] == digest


WRONG = {
    "not found": ("/model.onnx", None, None, "404 Client Error"),
    "another checksum": ("/model.onnx", ONNX, "0" * 64, "does not match the known hash"),
    "a page in place of the model": ("/m.onnx", b"<html>", None, "not a file of the format .onnx"),
    "another tflite": ("/m.tflite", ONNX, None, "not a file of the format .tflite"),
    "no archive": ("/m.zip", ONNX, None, "not a readable .zip file"),
    "a damaged archive": (
        "/m.zip",
        zipped(a_onnx=ONNX).replace(b"\xed", b"\xee"),
        None,
        "not a readable .zip file",
    ),
    "no model": ("/m.zip", zipped(a_txt=b""), None, "holds 0 .onnx files; expected one"),
    "two models": ("/m.zip", zipped(a_onnx=ONNX, b_onnx=ONNX), None, "holds 2 .onnx files"),
}


@pytest.mark.parametrize(("path", "content", "sha256", "reason"), WRONG.values(), ids=WRONG)
def test_a_failed_download_is_one_line_and_leaves_nothing(
    server, cache, path, content, sha256, reason
):
    with pytest.raises(InputError) as failure:
        find(server, path, content, sha256)
    line = str(failure.value)
    assert line.startswith(f"--model=small: cannot download {server.address}{path} (")
    assert reason in line
    unpack = ", unpack it" if path.endswith(".zip") else ""
    assert f"; download it elsewhere{unpack} and pass the file, --model=FILE." in line
    assert "\n" not in line
    assert list(cache.iterdir()) == []


def test_a_short_transfer_is_no_model(server, cache):
    server.missing_bytes = 7
    with pytest.raises(InputError, match=r"cannot download .*model.onnx \(.*7 more expected"):
        find(server, "/model.onnx", ONNX)
    assert list(cache.iterdir()) == []


def test_without_a_network_the_address_and_the_way_out_are_named(cache, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.socket() as bound:  # to a port at which nobody listens
        bound.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{bound.getsockname()[1]}/model.onnx"
        table = {"small": downloads.Download(url, "MIT", None)}
        with pytest.raises(InputError, match=rf"{url} \(.*refused.*--model=FILE"):
            downloads.find_model("small", table, "--model")
    assert list(cache.iterdir()) == []


def test_a_path_is_itself(tmp_path):
    file = tmp_path / "mine.onnx"
    table = {"small": downloads.Download("http://127.0.0.1/x.onnx", "MIT", None)}
    with pytest.raises(InputError, match=rf"--pose={file}: no such file.*\(small\).*pass its file"):
        downloads.find_model(str(file), table, "--pose")
    file.write_bytes(b"")
    assert downloads.find_model(str(file), table, "--pose") == file
    with pytest.raises(InputError, match="is a folder"):
        downloads.find_model(str(tmp_path), table, "--pose")


def test_without_pooch_the_package_is_named(monkeypatch):
    table = {"small": downloads.Download("http://127.0.0.1/x.onnx", "MIT", None)}
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(ImportError, match=r'pip install -e "\.\[pose\]"; or pass a file'):
        downloads.find_model("small", table, "--model")
