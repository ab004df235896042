"""Downloads against a server on this machine."""

import hashlib
import io
import logging
import socket
import tarfile
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from corpus_builders import load_script

SUBSET = "dev-clean"


def make_archive(members):
    """Return a tar.gz with the given name -> content, as bytes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


GOOD = make_archive(
    {
        "LibriSpeech/README.TXT": b"read me",
        f"LibriSpeech/{SUBSET}/1/2/1-2.trans.txt": b"1-2-0000 A\n",
        f"LibriSpeech/{SUBSET}/1/2/1-2-0000.flac": bytes(range(256)) * 20,
    }
)


class Server:
    """Content of the server, its behaviour, and the Range headers of the requests."""

    def __init__(self):
        self.content = GOOD
        self.ranges_work = True
        self.break_off_after = None
        self.ranges = []


class Handler(BaseHTTPRequestHandler):
    """Serve one file, with byte ranges unless told otherwise."""

    def __init__(self, server_state, *args):
        self.state = server_state
        super().__init__(*args)

    def do_GET(self):  # noqa: N802, the name is http.server's
        wanted = self.headers.get("Range")
        self.state.ranges.append(wanted)
        offset = 0
        if wanted and self.state.ranges_work:
            offset = int(wanted[len("bytes=") : -1])
        body = self.state.content[offset:]
        if self.path != f"/12/{SUBSET}.tar.gz":
            return self.send_error(404)
        if offset and not body:
            return self.send_error(416)
        self.send_response(206 if offset else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: self.state.break_off_after])

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    state = Server()
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, state))
    thread = threading.Thread(target=partial(httpd.serve_forever, 0.01), daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{httpd.server_port}"
    yield state
    httpd.shutdown()
    httpd.server_close()


@pytest.fixture
def download(monkeypatch):
    module = load_script("egs/mini_librispeech/asr1/local/download_and_untar.py")
    archive = module.Archive(12, hashlib.md5(GOOD).hexdigest())
    monkeypatch.setitem(module.ARCHIVES, SUBSET, archive)
    # A proxy of the environment must not stand between the test and its server.
    monkeypatch.setenv("no_proxy", "*")
    return module


@pytest.fixture
def run(download, server, tmp_path):
    def run_script(url=server.url):
        options = ["--outdir", str(tmp_path), "--subsets", SUBSET, "--base_url", url]
        download.main(options)

    return run_script


@pytest.fixture
def assert_refused(run, ends_with_error):
    """Return a function that runs the script and checks its line of error."""

    def check(*messages, **options):
        error = ends_with_error(run, **options)
        assert all(message in error for message in messages), error

    return check


def is_whole(tmp_path):
    subset = tmp_path / "LibriSpeech" / SUBSET
    audio = subset / "1" / "2" / "1-2-0000.flac"
    return (subset / ".complete").exists() and audio.stat().st_size == 256 * 20


def test_download_once(run, server, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    run()
    assert is_whole(tmp_path)
    names = {p.name for p in tmp_path.iterdir()}
    assert names == {"LibriSpeech", f"{SUBSET}.tar.gz"}
    run()
    assert server.ranges == [None]
    assert caplog.messages[-1].endswith("dev-clean is complete")


@pytest.mark.parametrize("ranges_work", [True, False])
def test_interrupted_download_goes_on(
    run, server, tmp_path, assert_refused, ranges_work
):
    server.break_off_after = 100
    closed = f"connection closed after 100 of {len(GOOD)} bytes; run again"
    assert_refused(closed)
    server.break_off_after = None
    server.ranges_work = ranges_work
    run()
    assert is_whole(tmp_path) and server.ranges == [None, "bytes=100-"]


def test_part_that_was_already_whole(run, server, tmp_path):
    (tmp_path / f"{SUBSET}.tar.gz.part").write_bytes(GOOD)
    run()
    assert is_whole(tmp_path)


def test_wrong_checksum(run, server, tmp_path, assert_refused):
    server.content = GOOD[:-1] + b"?"
    got, expected = (hashlib.md5(c).hexdigest() for c in (server.content, GOOD))
    assert_refused(server.url, f"MD5 {got}, expected {expected}")
    assert list(tmp_path.iterdir()) == []
    server.content = GOOD
    run()
    assert is_whole(tmp_path)


def test_wrong_checksum_of_a_file_of_the_user(run, server, tmp_path, assert_refused):
    archive = tmp_path / f"{SUBSET}.tar.gz"
    archive.write_bytes(b"mine")
    assert_refused(str(archive), "delete it and run again")
    assert archive.read_bytes() == b"mine" and server.ranges == []


def test_no_network(run, tmp_path, assert_refused):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        address = f"{url}/12/{SUBSET}.tar.gz"
        assert_refused(address, "refused", "LIBRISPEECH= in db.sh", url=url)
    run()
    assert is_whole(tmp_path)


def test_not_found_and_malformed_url(run, server, assert_refused):
    assert_refused("Not Found", url=f"{server.url}/elsewhere")
    assert_refused("nowhere", url="nowhere")


def serve(download, server, monkeypatch, content):
    server.content = content
    archive = download.Archive(12, hashlib.md5(content).hexdigest())
    monkeypatch.setitem(download.ARCHIVES, SUBSET, archive)


@pytest.mark.parametrize(
    "content, message",
    [
        (make_archive({"else/x": b""}), f"holds no LibriSpeech/{SUBSET}/"),
        (make_archive({f"LibriSpeech/{SUBSET}/../../../x": b""}), "outside"),
        (GOOD[: len(GOOD) // 2], "cannot unpack"),
        (b"no archive", "cannot unpack"),
    ],
)
def test_bad_archive(
    run, download, server, tmp_path, monkeypatch, assert_refused, content, message
):
    serve(download, server, monkeypatch, content)
    assert_refused(message)
    assert not (tmp_path / "LibriSpeech").exists()
    assert not (tmp_path.parent / "x").exists()


def test_links_in_an_archive_are_refused(
    run, download, server, tmp_path, monkeypatch, assert_refused
):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        link = tarfile.TarInfo(f"LibriSpeech/{SUBSET}/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    serve(download, server, monkeypatch, buffer.getvalue())
    assert_refused("no regular file")
    assert not (tmp_path / "LibriSpeech").exists()


def test_folder_that_something_else_made_is_left_alone(run, tmp_path, assert_refused):
    (tmp_path / "LibriSpeech" / SUBSET / "1").mkdir(parents=True)
    assert_refused("exists without .complete", "LIBRISPEECH= in db.sh")
    assert (tmp_path / "LibriSpeech" / SUBSET / "1").exists()
