import errno
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from rare_lightning.cli import main
from rare_lightning.data import DecathlonDataModule, download
from rare_lightning.errors import UserError

NAME = "Task04_Hippocampus"
CONF = Path(__file__).parents[1] / "conf"


class Server(ThreadingHTTPServer):
    """Serves ``content`` at every path; each of ``faults`` spoils one answer, and ``always`` those after them."""

    daemon_threads = True
    ranges = True
    always = None

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.content = b""
        self.faults = []
        self.requests = []


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        server = self.server
        wanted = self.headers.get("Range")
        server.requests.append(wanted)
        fault = server.faults.pop(0) if server.faults else server.always
        if callable(fault):
            fault = fault(server)
        if isinstance(fault, int):
            self.send_error(fault)
            return
        start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and server.ranges else 0
        if start and start >= len(server.content):
            self.send_error(416)
            return
        body = server.content[start:]
        self.send_response(206 if start else 200)
        if start:
            first = 0 if fault == "other bytes" else start
            self.send_header("Content-Range", f"bytes {first}-{len(server.content) - 1}/{len(server.content)}")
        if fault != "no length":
            length = {"length too large": 1000, "length too small": -1000}.get(fault, 0) + len(body)
            self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if fault == "drop" else body[:0] if fault == "nothing" else body)


@pytest.fixture
def server():
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(download, "PAUSE", 0)
    monkeypatch.setattr(download, "TIMEOUT", 5)


def archive_of(folder, *extra):
    """A tar of a task's folder under the name of Task04, and of extra members with their content."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        tar.add(folder, NAME)
        for member, content in extra:
            tar.addfile(member, io.BytesIO(content))
    return stream.getvalue()


@pytest.fixture
def serve(server, monkeypatch):
    def start(content, *faults, always=None, published=None):
        server.content, server.faults, server.always = content, list(faults), always
        monkeypatch.setitem(download.CHECKSUMS, NAME, hashlib.md5(published or content).hexdigest())
        return server

    return start


@pytest.fixture
def archive(phantom):
    return archive_of(phantom)


def fetch(server, root, task="hippocampus"):
    return main(["data", "download", task, "--root", str(root), "--source", server.url])


def refused(server, root, message, capsys):
    """The command ends in exit code 1 and one line."""
    assert fetch(server, root) == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith("rare: error: ")
    assert "\n" not in error
    assert re.search(message, error), error


def left_in(root):
    return sorted(path.name for path in root.iterdir()) if root.exists() else []


def same_files(one, other):
    files = [{p.relative_to(root): p.read_bytes() for p in root.rglob("*") if p.is_file()} for root in (one, other)]
    return files[0] == files[1]


def test_all_ten_tasks_are_known_by_name_number_and_organ():
    assert len(download.CHECKSUMS) == 10
    for number, name in enumerate(sorted(download.CHECKSUMS), 1):
        for text in (name, f"{number:02d}", str(number), name.split("_")[1].lower()):
            assert download.task_name(text) == name
    with pytest.raises(UserError, match=r"no Decathlon task '11'.*Task01_BrainTumour"):
        download.task_name("11")


def test_a_task_is_downloaded_once(serve, archive, phantom, tmp_path, capsys):
    server = serve(archive)
    for _ in range(2):
        assert fetch(server, tmp_path) == 0
        assert f"{NAME}: 6 labelled cases" in capsys.readouterr().out
    assert same_files(tmp_path / NAME, phantom)
    assert left_in(tmp_path) == [NAME]
    assert len(server.requests) == 1
    assert main(["data", "check", str(tmp_path / NAME)]) == 0


FAULTS = {
    "drop": ["drop"] * 3,
    "503": [503, 503],
    "500 and 429": [500, 429],
    "nothing": ["nothing"] * 5,
    "length too large": ["length too large"],
    "length too small": ["length too small", 416],
    "other bytes": ["drop", "other bytes"],
    "no length": ["no length"],
    "drop without length": ["drop", "no length"],
}


@pytest.mark.parametrize("ranges", [True, False], ids=["ranges", "no ranges"])
@pytest.mark.parametrize("faults", FAULTS.values(), ids=FAULTS)
def test_faults_of_the_connection_are_overcome(serve, archive, phantom, tmp_path, faults, ranges):
    server = serve(archive, *faults)
    server.ranges = ranges
    first_cut_short = faults[0] == "length too small"
    if first_cut_short:  # nothing shows that bytes are missing but the checksum
        assert fetch(server, tmp_path) == 1
        server.faults = []
    assert fetch(server, tmp_path) == 0
    assert same_files(tmp_path / NAME, phantom)
    assert left_in(tmp_path) == [NAME]


def test_an_interrupted_download_goes_on_in_the_next_run(serve, archive, phantom, tmp_path, capsys):
    server = serve(archive, "drop", always=503)
    refused(server, tmp_path, rf"HTTP 503 .*6 times in a row.*{len(archive) // 2} bytes", capsys)
    assert left_in(tmp_path) == [f"{NAME}.tar.part"]
    server.always = None
    assert fetch(server, tmp_path) == 0
    assert server.requests[-1] == f"bytes={len(archive) // 2}-"
    assert same_files(tmp_path / NAME, phantom)


def test_a_whole_archive_that_was_not_unpacked_is_not_fetched_again(serve, archive, tmp_path):
    (tmp_path / f"{NAME}.tar.part").write_bytes(archive)
    assert fetch(serve(archive), tmp_path) == 0
    assert left_in(tmp_path) == [NAME]


def test_an_archive_that_changes_between_attempts_is_fetched_from_the_start(serve, archive, phantom, tmp_path):
    def change(server):
        server.content = archive
        return None

    server = serve(b"\0" * len(archive), "drop", change, published=archive)
    assert fetch(server, tmp_path) == 0
    assert server.requests == [None, f"bytes={len(archive) // 2}-", None]
    assert same_files(tmp_path / NAME, phantom)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (404, "HTTP 404"),
        (403, "HTTP 403"),
        (500, "HTTP 500 .*6 times in a row"),
        ("nothing", "ended after 0 of .* bytes, 6 times in a row"),
    ],
)
def test_a_server_that_keeps_failing_is_given_up(serve, archive, tmp_path, capsys, fault, message):
    server = serve(archive, always=fault)
    refused(server, tmp_path, message, capsys)
    assert not (tmp_path / NAME).exists()
    assert len(server.requests) == (1 if fault in (403, 404) else 6)


@pytest.mark.parametrize("always", [None, "length too large"])
def test_a_wrong_archive_is_refused(serve, archive, tmp_path, capsys, always):
    server = serve(archive[:-1] + b"x", always=always, published=archive)
    refused(server, tmp_path, "has MD5 .* and not", capsys)
    assert left_in(tmp_path) == []


@pytest.mark.parametrize(("source", "message"), [("nowhere", "not a URL"), ("http://127.0.0.1:1", "refused")])
def test_a_wrong_source_is_refused(tmp_path, capsys, source, message):
    refused(SimpleNamespace(url=source), tmp_path, message, capsys)
    assert left_in(tmp_path) == []


def member(name, kind=tarfile.REGTYPE, link="", content=b"", **values):
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, len(content)
    for key, value in values.items():
        setattr(info, key, value)
    return info, content


def sparse(size):
    """A GNU sparse file that claims a size and holds nothing."""
    info, _ = member(f"{NAME}/huge.nii")
    info.type = tarfile.GNUTYPE_SPARSE
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[386:410] = b"%011o\0%011o\0" % (0, 0)
    header[483:495] = b"\x80" + size.to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


HOSTILE = {
    "parent": member("../x", content=b"x"),
    "parent within": member(f"{NAME}/../../x", content=b"x"),
    "absolute": member("/tmp/rare-lightning-x", content=b"x"),
    "symbolic link out": member(f"{NAME}/out", tarfile.SYMTYPE, "../../.."),
    "symbolic link within": member(f"{NAME}/in", tarfile.SYMTYPE, "dataset.json"),
    "hard link out": member(f"{NAME}/out", tarfile.LNKTYPE, "../../x"),
    "character device": member(f"{NAME}/null", tarfile.CHRTYPE, devmajor=1, devminor=3),
    "block device": member(f"{NAME}/disk", tarfile.BLKTYPE, devmajor=8),
    "pipe": member(f"{NAME}/pipe", tarfile.FIFOTYPE),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_members_are_refused_by_name(serve, phantom, tmp_path, capsys, kind):
    root = tmp_path / "root"
    server = serve(archive_of(phantom, HOSTILE[kind]))
    refused(server, root, f"not unpacked, since {HOSTILE[kind][0].name!r}", capsys)
    assert left_in(root) == []
    assert left_in(tmp_path) == ["root"]
    assert not Path("/tmp/rare-lightning-x").exists()


HUGE = member(f"{NAME}/huge", content=b"")[0]
HUGE.size = 1 << 50


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (sparse(1 << 50), "huge.nii' is neither a plain file nor a folder"),
        (HUGE.tobuf(), "huge' claims 1125899906842624 bytes"),
        (b"not a tar" * 1000, "cannot be unpacked|holds no"),
    ],
    ids=["sparse", "beyond the end", "no tar"],
)
def test_sizes_that_an_archive_only_claims_are_refused(serve, archive, tmp_path, capsys, header, message):
    content = header if header.startswith(b"not") else header + archive
    refused(serve(content), tmp_path, message, capsys)
    assert left_in(tmp_path) == []


def test_an_archive_without_the_task_is_refused(serve, tmp_path, capsys):
    (tmp_path / "other").mkdir()
    refused(serve(archive_of(tmp_path / "other")), tmp_path / "root", f"holds no {NAME}/dataset.json", capsys)
    assert left_in(tmp_path / "root") == []


def test_files_that_macos_leaves_are_not_unpacked(serve, phantom, tmp_path):
    noise = [member(f"{folder}._{name}", content=b"\0\5\x16\7") for folder, name in (
        ("", NAME), (f"{NAME}/", "dataset.json"), (f"{NAME}/imagesTr/", "hippocampus_001.nii.gz"),
    )]  # fmt: skip
    assert fetch(serve(archive_of(phantom, *noise)), tmp_path) == 0
    assert same_files(tmp_path / NAME, phantom)


def test_a_full_disk_is_noticed_before(serve, archive, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=len(archive)))
    refused(serve(archive), tmp_path, "needs .* GiB more in .* are free", capsys)
    assert left_in(tmp_path) == []


def test_a_disk_that_fills_meanwhile_is_no_fault_of_the_network(serve, archive, tmp_path, capsys, monkeypatch):
    server = serve(archive)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(download, "_check_room", full)
    refused(server, tmp_path, f"{NAME}: cannot be written .No space left on device.", capsys)
    assert len(server.requests) == 1


def test_what_is_something_else_is_refused_and_kept(serve, archive, tmp_path, capsys):
    server = serve(archive)
    (tmp_path / NAME).mkdir()
    (tmp_path / NAME / "thesis.txt").write_text("mine")
    refused(server, tmp_path, f"{NAME}: exists and is no Decathlon task", capsys)
    assert (tmp_path / NAME / "thesis.txt").read_text() == "mine"
    shutil.rmtree(tmp_path / NAME)
    (tmp_path / NAME).write_text("mine")
    refused(server, tmp_path, f"{NAME}: exists and is no Decathlon task", capsys)
    assert (tmp_path / NAME).read_text() == "mine"
    assert server.requests == []


def test_an_empty_folder_is_filled(serve, archive, tmp_path):
    (tmp_path / NAME).mkdir()
    assert fetch(serve(archive), tmp_path) == 0
    assert (tmp_path / NAME / "dataset.json").is_file()


@pytest.mark.parametrize("choice", ["true", "URL"])
def test_fit_downloads_its_data_first(serve, archive, tmp_path, monkeypatch, choice):
    server = serve(archive)
    monkeypatch.setattr(download, "ARCHIVES", server.url)
    words = ["--config", str(CONF / "tiny.yaml"), "--data.root", str(tmp_path / "data" / NAME)]
    words += ["--run_dir", str(tmp_path / "run"), "--data.download", choice.replace("URL", server.url)]
    assert main(["fit", *words]) == 0
    assert len(server.requests) == 1
    assert (tmp_path / "run" / "checkpoints" / "best.ckpt").is_file()


def test_a_folder_that_is_named_after_no_task_cannot_be_downloaded(tmp_path):
    with pytest.raises(UserError, match="its name must be a Decathlon task's: Task01"):
        DecathlonDataModule(str(tmp_path / "mine"), download=True)


def test_a_task_that_is_there_may_have_any_name(phantom):
    assert DecathlonDataModule(str(phantom), folds=2, download=True).task.root == phantom


@pytest.mark.slow
def test_processes_that_start_at_once_download_once(serve, archive, phantom, tmp_path):
    server = serve(archive)
    program = (
        "import sys; from rare_lightning.data import download; from pathlib import Path\n"
        f"download.CHECKSUMS[{NAME!r}] = {hashlib.md5(archive).hexdigest()!r}\n"
        "print('ready', flush=True); sys.stdin.read()\n"
        f"print(len(download.find_task(sys.argv[1], sys.argv[2]).cases))"
    )
    command = [sys.executable, "-c", program, str(tmp_path / NAME), server.url]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, **pipes) for _ in range(4)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.close()
    for process in processes:
        assert process.stdout.read().split() == ["6"]
        process.stdout.close()
        assert process.wait(timeout=60) == 0
    assert len(server.requests) == 1
    assert left_in(tmp_path) == [NAME]
    assert same_files(tmp_path / NAME, phantom)
    assert json.loads((tmp_path / NAME / "dataset.json").read_text())["numTraining"] == 6
