"""Decathlon tasks from their public archives: resumed, verified, unpacked safely, and there whole or not at all."""

import errno
import hashlib
import http.client
import shutil
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from lightning.pytorch.utilities import rank_zero_info
from monai.apps import DecathlonDataset
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, track

from rare_lightning.data.task import Task, read_task
from rare_lightning.data.voxels import reason
from rare_lightning.errors import UserError

ARCHIVES = "https://msd-for-monai.s3-us-west-2.amazonaws.com"
"""Where the archives are: ``ARCHIVES/Task04_Hippocampus.tar`` and so on."""

CHECKSUMS: dict[str, str] = DecathlonDataset.md5
"""Task -> MD5 of its archive."""

TRIES = 6
"""Attempts in a row that bring nothing new before a download is given up."""

PAUSE = 1.0
"""Seconds before the second of them; doubled before each of the others."""

OF_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)
"""Errors that another attempt does not mend."""

TIMEOUT = 30.0
"""Seconds without an answer after which an attempt has failed."""


def download(task: str, root: str = ".", source: str = ARCHIVES) -> None:
    """Download a task of the Medical Segmentation Decathlon; what is there is not downloaded again.

    Args:
        task: ``Task04_Hippocampus``, ``04`` or ``hippocampus``; so for the other nine.
        root: Folder that the task's folder is made in.
        source: URL of the folder with the archives, if not the public one.

    Raises:
        UserError: If there is no such task, or it cannot be downloaded, is damaged, or does not fit on the disk.
    """
    folder = Path(root).expanduser() / task_name(task)
    download_into(folder, source)
    print(f"{folder}: {len(read_task(folder).cases)} labelled cases. Next: rare data check {folder}")


def find_task(root: str, download: bool | str) -> Task:
    """The task in a folder, downloaded before if it is not there and ``download`` is True or a URL, as of ``source``.

    Raises:
        UserError: As of :func:`download_into` and :func:`~.task.read_task`.
    """
    if download:
        download_into(Path(root).expanduser(), ARCHIVES if download is True else download)
    return read_task(root)


def task_name(text: str) -> str:
    """Full name of the task that a full name, a number or an organ means.

    Raises:
        UserError: If it means none.
    """
    for name in CHECKSUMS:
        number, _, organ = name.removeprefix("Task").partition("_")
        if text.lower() in (name.lower(), organ.lower()) or (text.isdigit() and int(text) == int(number)):
            return name
    raise UserError(f"there is no Decathlon task {text!r}. Tasks: {', '.join(CHECKSUMS)}")


def download_into(folder: Path, source: str = ARCHIVES) -> None:
    """Make the folder of the task that its name says, unless it is there.

    Processes that do so at once, on one machine or a shared disk, wait for the first. The folder is renamed into place
    at the very end; what came of the archive stays beside it as ``.tar.part`` if the connection fails, to go on from.

    Raises:
        UserError: If something else is there, the name is no task's, or the task cannot be downloaded, is damaged, or
            does not fit on the disk.
    """
    name = folder.name
    try:
        if _is_there(folder):
            return
        if name not in CHECKSUMS:
            raise UserError(f"{folder}: to be downloaded, its name must be a Decathlon task's: {', '.join(CHECKSUMS)}")
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.with_name(f".{name}.lock"))
        try:
            lock.acquire(blocking=False)
        except Timeout:
            rank_zero_info(f"Waiting for another process that downloads {folder}")
            lock.acquire()
        try:
            if not _is_there(folder):
                _download(f"{source.rstrip('/')}/{name}.tar", folder)
        finally:
            Path(lock.lock_file).unlink(missing_ok=True)  # while held: who waits for it sees that and makes a new one
            lock.release()
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror or error})") from error


def _is_there(folder: Path) -> bool:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    if not (folder / "dataset.json").is_file():
        raise UserError(
            f"{folder}: exists and is no Decathlon task (no dataset.json). Move it or choose another place."
        )
    return True


def _download(url: str, folder: Path) -> None:
    archive = folder.with_name(f"{folder.name}.tar.part")
    _fetch_verified(url, archive, CHECKSUMS[folder.name])
    scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        _unpack(archive, scratch, url)
        unpacked = scratch / folder.name
        if not (unpacked / "dataset.json").is_file():
            raise UserError(f"{url}: holds no {folder.name}/dataset.json")
        unpacked.rename(folder)
    except UserError:  # of an archive that is as it was published: it would be no better the next time
        archive.unlink()
        raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    archive.unlink()


def _fetch_verified(url: str, archive: Path, checksum: str) -> None:
    for _ in range(2):
        in_one_piece = _fetch(url, archive)
        with archive.open("rb") as file:
            found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        if found == checksum:
            return
        archive.unlink()
        if in_one_piece:
            break
        # The pieces may be of different files, the server's having changed: once more, from the start.
    raise UserError(
        f"{url}: has MD5 {found} and not {checksum}, so it is not the published archive or was damaged on the way. "
        "It was removed: try again, or choose another source."
    )


def _fetch(url: str, archive: Path) -> bool:
    """Fetch what is missing of a file. Returns whether all of it came in one answer."""
    failures, furthest = 0, 0
    columns = (TextColumn(archive.stem), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True) as progress:
        bar = progress.add_task(url)
        while True:
            try:
                return _fetch_once(url, archive, lambda done, total: progress.update(bar, completed=done, total=total))
            except urllib.error.HTTPError as error:
                problem = f"HTTP {error.code} {error.reason}"
                if error.code < 500 and error.code not in (408, 429):
                    raise UserError(f"{url}: {problem}. Is this where the archive is?") from error
            except ValueError as error:
                raise UserError(f"{url}: not a URL ({error})") from error
            except (OSError, http.client.HTTPException) as error:
                if getattr(error, "errno", None) in OF_DISK:
                    raise
                problem = str(getattr(error, "reason", error)) or type(error).__name__
            size = archive.stat().st_size if archive.exists() else 0
            failures = 0 if size > furthest else failures + 1
            furthest = max(size, furthest)
            if failures == TRIES:
                raise UserError(
                    f"{url}: {problem}, {TRIES} times in a row. The same command goes on from {size} bytes."
                )
            time.sleep(PAUSE * 2 ** max(0, failures - 1))


def _fetch_once(url: str, archive: Path, report: Callable[[int, int | None], None]) -> bool:
    have = archive.stat().st_size if archive.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # there is nothing more: the checksum tells whether this is all
            return False
        raise
    with response:
        resumed = response.status == 206
        if resumed and not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            archive.unlink()
            raise ConnectionError(f"asked to go on from byte {have}, the server sent other bytes")
        done = have if resumed else 0
        length = response.headers.get("Content-Length", "")
        total = done + int(length) if length.isdigit() else None
        if total is not None:
            _check_room(archive, total - done + total, url)  # for the rest, and to unpack it
        with archive.open("ab" if resumed else "wb") as file:
            while block := response.read(1 << 20):
                file.write(block)
                done += len(block)
                report(done, total)
    if total is not None and done < total:
        raise ConnectionError(f"the connection ended after {done} of {total} bytes")
    return not resumed


def _check_room(path: Path, needed: int, what: str) -> None:
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise UserError(
            f"{what}: needs {needed / 2**30:.2f} GiB more in {path.parent}, where {free / 2**30:.2f} GiB are free"
        )


def _unpack(archive: Path, folder: Path, url: str) -> None:
    """Unpack files and folders; anything else is refused before a byte is written."""
    try:
        with tarfile.open(archive) as tar:
            members = []
            for member in tar:
                _refuse_unsafe(member, folder, archive.stat().st_size, url)
                if not Path(member.name).name.startswith("._"):  # left by macOS
                    members.append(member)
            # Before 3.11.4, Python has no filters; what they refuse was refused above.
            options: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
            tar.extractall(folder, track(members, "Unpacking", transient=True), **options)
    except (tarfile.TarError, EOFError, zlib.error, ValueError, MemoryError) as error:
        raise UserError(f"{url}: cannot be unpacked ({reason(error)})") from error


def _refuse_unsafe(member: tarfile.TarInfo, folder: Path, most_bytes: int, url: str) -> None:
    # The data filter would let links through that stay inside: no Decathlon archive has any.
    if not (member.isreg() or member.isdir()) or member.issparse():
        problem = "is neither a plain file nor a folder"
    elif not (folder / member.name).resolve().is_relative_to(folder.resolve()):
        problem = "would lie outside its folder"
    elif member.size > most_bytes:
        problem = f"claims {member.size} bytes, more than the archive has"
    else:
        return
    raise UserError(f"{url}: not unpacked, since {member.name!r} {problem}")
