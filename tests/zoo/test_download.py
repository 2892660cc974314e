import gzip
import http.server
import io
import sys
import threading
import types
import zipfile

import numpy as np
import pytest

from nn_adv.zoo import download, files
from nn_adv.zoo.entries import File


def _file_of_tensors(values):
    """The bytes of a zip that passes for a file of PyTorch's as far as it is checked here."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x/data.pkl", b"")
        archive.writestr("x/data/0", values)
    return file.getvalue()


CONTENT = _file_of_tensors(bytes(range(256)) * 400)
PAGE = b"<!DOCTYPE html><html>Too many users have viewed or downloaded this file recently"


class _Server(http.server.ThreadingHTTPServer):
    """Serves CONTENT, a cut-off CONTENT or PAGE."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.content = CONTENT
        self.cut_at = None  # closes the connection after so many bytes of an answer

    def url(self, path="x.pt"):
        return f"http://127.0.0.1:{self.server_port}/{path}"


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):  # noqa: N802
        content = self.server.content
        self.send_response(404 if self.path == "/missing" else 200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: self.server.cut_at])
        self.close_connection = True

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with _Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def _names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_fetched_under_its_name(server, tmp_path):
    folder = tmp_path / "cifar10" / "Linf"
    file = File("x.pt", server.url())
    path = download.fetch(file, folder)
    assert path == folder / "x.pt" and path.read_bytes() == CONTENT
    assert _names(folder) == ["x.pt"]


def test_a_transfer_cut_off_does_not_get_its_name(server, tmp_path):
    server.cut_at = 1000
    file = File("x.pt", server.url())
    with pytest.raises(OSError, match=r"cannot download x\.pt \(.*(bytes|IncompleteRead).*\); get it from http.*x\.pt"):
        download.fetch(file, tmp_path)
    assert _names(tmp_path) == ["x.pt.part"]
    server.cut_at = None
    assert download.fetch(file, tmp_path).read_bytes() == CONTENT
    assert _names(tmp_path) == ["x.pt"]


def test_a_web_page_is_recognised(server, tmp_path):
    server.content = PAGE
    with pytest.raises(OSError, match="what came is a web page, not weights .a quota, .* a sign-in or a warning"):
        download.fetch(File("x.pt", server.url()), tmp_path)
    assert _names(tmp_path) == []


@pytest.mark.parametrize("cut", [100, len(CONTENT) // 2, len(CONTENT) - 1])
def test_a_file_that_lacks_its_end_does_not_get_its_name(server, tmp_path, cut):
    server.content = CONTENT[:cut]  # as long as the server says
    with pytest.raises(OSError, match=r"cannot download x\.pt \(what came is damaged, cut off or .*; get it from"):
        download.fetch(File("x.pt", server.url()), tmp_path)
    assert _names(tmp_path) == []


def test_safetensors_are_checked_by_their_header(server, tmp_path):
    files.write_state_dict(tmp_path / "whole.safetensors", {"a": np.ones(100, np.float32)})
    whole = (tmp_path / "whole.safetensors").read_bytes()
    server.content = whole
    assert download.fetch(File("x.safetensors", server.url()), tmp_path).read_bytes() == whole
    for content in (whole[:-1], b"neither of these"):
        server.content = content
        with pytest.raises(OSError, match="what came is damaged, cut off or no safetensors file"):
            download.fetch(File("y.safetensors", server.url()), tmp_path)
    assert _names(tmp_path) == ["whole.safetensors", "x.safetensors"]


def test_a_whole_file_of_another_kind_is_kept_for_the_reader_to_name(server, tmp_path):
    for name in ("x.safetensors", "x.pt"):
        server.content = CONTENT if name == "x.safetensors" else gzip.compress(CONTENT)
        path = download.fetch(File(name, server.url()), tmp_path)
        with pytest.raises(ValueError, match=r"is a zip.*\.pt$|is a gzip file: unpack it"):
            files.read_state_dict(path)


def test_an_error_of_the_server_is_told(server, tmp_path):
    with pytest.raises(OSError, match=r"cannot download x\.pt \(HTTP Error 404.*\); get it from"):
        download.fetch(File("x.pt", server.url("missing")), tmp_path)


def test_without_a_connection_the_error_is_one_line_with_what_to_do(tmp_path, server):
    url = server.url()
    server.server_close()  # nobody listens any more
    with pytest.raises(OSError, match="cannot download x.pt") as caught:
        download.fetch(File("x.pt", url), tmp_path)
    assert "\n" not in str(caught.value) and str(tmp_path / "x.pt") in str(caught.value)


def _gdown(monkeypatch, content):
    """Put a gdown in place that writes ``content``, or raises it."""
    calls = []

    def fake(**options):
        calls.append(options)
        if isinstance(content, Exception):
            raise content
        with open(options["output"], "wb") as file:
            file.write(content)

    monkeypatch.setitem(sys.modules, "gdown", types.SimpleNamespace(download=fake))
    return calls


def test_google_drive_is_left_to_gdown(tmp_path, monkeypatch):
    calls = _gdown(monkeypatch, CONTENT)
    assert download.fetch(File("x.pt", "gdrive:abc"), tmp_path).read_bytes() == CONTENT
    part = str(tmp_path / "x.pt.part")
    assert calls == [{"id": "abc", "output": part, "quiet": True, "resume": True, "timeout": download._TIMEOUT}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (PAGE, "what came is a web page"),
        (
            RuntimeError("Failed to retrieve file url:\n\n\tToo many users"),
            "Failed to retrieve file url: Too many users",
        ),
        (RuntimeError(), "RuntimeError"),
    ],
)
def test_refusals_of_google_drive_name_the_page(tmp_path, monkeypatch, content, message):
    _gdown(monkeypatch, content)
    with pytest.raises(
        OSError, match=f"{message}.*get it from https://drive.google.com/file/d/abc/view and save it as"
    ):
        download.fetch(File("x.pt", "gdrive:abc"), tmp_path)


def test_google_drive_may_give_nothing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gdown", types.SimpleNamespace(download=lambda **options: None))
    with pytest.raises(OSError, match="Google Drive gave no file.*get it from"):
        download.fetch(File("x.pt", "gdrive:abc"), tmp_path)


def test_without_gdown_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gdown", None)
    with pytest.raises(
        ImportError, match=r"x\.pt is on Google Drive: pip install 'nn_adv\[zoo\]'.*or get it from http"
    ):
        download.fetch(File("x.pt", "gdrive:abc"), tmp_path)


def test_a_file_without_a_source_is_to_be_put_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*x\.pt; put it into"):
        download.fetch(File("x.pt"), tmp_path)


def test_a_folder_that_cannot_be_made_is_told_with_what_to_do(server, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"cannot download x\.pt \(.*file.*\); get it from"):
        download.fetch(File("x.pt", server.url()), tmp_path / "file" / "Linf")
