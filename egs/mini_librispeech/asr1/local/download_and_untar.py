#!/usr/bin/env python3
"""Download and unpack the subsets of LibriSpeech that the recipe needs.

A subset is complete when ``OUTDIR/LibriSpeech/SUBSET/.complete`` exists. After an
interruption, run the command again; it continues where it stopped.
"""

import argparse
import hashlib
import logging
import os
import shutil
import sys
import tarfile
import urllib.error
import urllib.request
import zlib
from http.client import HTTPException
from pathlib import Path
from typing import List, NamedTuple, Optional

from tqdm import tqdm

CHUNK = 1 << 20  # bytes
TIMEOUT_S = 60
WAY_OUT = "download it by hand into {outdir}, or set LIBRISPEECH= in db.sh"


class Archive(NamedTuple):
    """OpenSLR resource number and checksum of one archive."""

    resource: int
    md5: str


# The checksums are those of md5sum.txt in the resource's folder on OpenSLR.
ARCHIVES = {
    "train-clean-5": Archive(31, "5df7d4e78065366204ca6845bb08f490"),
    "dev-clean": Archive(12, "42e2234ba48799c1f50f24a7926300a1"),
    "test-clean": Archive(12, "32fa31d27d2e1cad72775fee3f4849a9"),
}


class DownloadError(Exception):
    """A subset cannot be downloaded; the text is the message to the user."""


def get_parser() -> argparse.ArgumentParser:
    """Return the command line parser."""
    parser = argparse.ArgumentParser(
        description="Download and unpack subsets of LibriSpeech",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--outdir", required=True, help="Folder of the archives and of LibriSpeech/"
    )
    parser.add_argument(
        "--subsets", nargs="+", choices=list(ARCHIVES), default=list(ARCHIVES)
    )
    parser.add_argument(
        "--base_url",
        default="https://www.openslr.org/resources",
        help="OpenSLR or one of its mirrors",
    )
    return parser


def open_url(url: str, offset: int):
    """Open a URL at a byte offset, which the server may ignore."""
    headers = {"Range": f"bytes={offset}-"} if offset else {}
    request = urllib.request.Request(url, headers=headers)
    return urllib.request.urlopen(request, timeout=TIMEOUT_S)


def fetch(url: str, part: Path) -> None:
    """Download a URL to ``part``, continuing after its present bytes.

    Raises:
        OSError, HTTPException: If the server cannot be reached or breaks off.
    """
    offset = part.stat().st_size if part.exists() else 0
    try:
        response = open_url(url, offset)
    except urllib.error.HTTPError as error:
        # 416: no bytes after the offset; get_archive verifies the checksum.
        if error.code == 416 and offset:
            return
        raise
    with response:
        if response.status != 206:  # the server sends the file from its beginning
            offset = 0
        length = response.headers.get("Content-Length")
        total = offset + int(length) if length else None
        with (
            part.open("ab" if offset else "wb") as out,
            tqdm(
                total=total,
                initial=offset,
                unit="B",
                unit_scale=True,
                desc=url.rsplit("/", 1)[-1],
                disable=None,  # no progress bar in log files
            ) as progress,
        ):
            while chunk := response.read(CHUNK):
                out.write(chunk)
                progress.update(len(chunk))
    size = part.stat().st_size
    if total is not None and size != total:
        raise ConnectionError(f"connection closed after {size} of {total} bytes")


def md5_of(path: Path) -> str:
    """Return the MD5 checksum of a file in hex."""
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as f:
        while chunk := f.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def get_archive(subset: str, base_url: str, outdir: Path) -> Path:
    """Return the archive of a subset, downloaded if it is missing.

    Raises:
        DownloadError: If it cannot be downloaded or has a wrong checksum.
    """
    archive = outdir / f"{subset}.tar.gz"
    part = outdir / f"{subset}.tar.gz.part"
    url = f"{base_url.rstrip('/')}/{ARCHIVES[subset].resource}/{archive.name}"
    if not archive.exists():
        logging.info(f"downloading {url}")
        try:
            fetch(url, part)
        except (OSError, HTTPException, ValueError) as error:
            reason = getattr(error, "reason", None) or error
            raise DownloadError(
                f"cannot download {url}: {reason}; run again to go on where it "
                f"stopped, {WAY_OUT.format(outdir=outdir)}"
            ) from error
    fresh = not archive.exists()
    got, expected = md5_of(part if fresh else archive), ARCHIVES[subset].md5
    if got == expected:
        if fresh:
            part.rename(archive)
        return archive
    if fresh:
        part.unlink()
        raise DownloadError(
            f"{url}: MD5 {got}, expected {expected}; what was downloaded is deleted: "
            f"run again, use another --base_url, {WAY_OUT.format(outdir=outdir)}"
        )
    raise DownloadError(
        f"{archive}: MD5 {got}, expected {expected}; delete it and run again"
    )


def extract_file(tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    """Extract a regular file of an archive into a folder.

    Early patches of Python 3.10 and 3.11 lack tarfile's extraction filters.

    Raises:
        DownloadError: If the member is no regular file, or its path is outside of the
            folder.
    """
    target = (folder / member.name).resolve()
    if folder.resolve() not in target.parents:
        raise DownloadError(
            f"{tar.name}: {member.name!r} would land outside of {folder}; this is not "
            "LibriSpeech: delete it and run again"
        )
    content = tar.extractfile(member) if member.isfile() else None
    if content is None:
        raise DownloadError(
            f"{tar.name}: {member.name!r} is no regular file; this is not LibriSpeech: "
            "delete it and run again"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    with content, target.open("wb") as file:
        shutil.copyfileobj(content, file)


def untar(archive: Path, subset: str, outdir: Path) -> None:
    """Unpack ``LibriSpeech/SUBSET`` of an archive into ``outdir``, all or nothing.

    Raises:
        DownloadError: If the archive is damaged, lacks the folder or has a member whose
            path is outside of ``outdir``.
    """
    temporary = outdir / f".untar-{subset}"
    shutil.rmtree(temporary, ignore_errors=True)
    wanted = f"LibriSpeech/{subset}/"
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tqdm(tar, desc=f"untar {subset}", unit="file", disable=None):
                if member.name.startswith(wanted) and not member.isdir():
                    extract_file(tar, member, temporary)
    except (tarfile.TarError, zlib.error, EOFError) as error:
        raise DownloadError(
            f"cannot unpack {archive}: {error}; delete it and run again"
        ) from error
    source = temporary / "LibriSpeech" / subset
    if not source.is_dir():
        raise DownloadError(f"{archive} holds no {wanted}: delete it and run again")
    # The marker is inside, so that one rename makes the subset complete.
    (source / ".complete").touch()
    (outdir / "LibriSpeech").mkdir(exist_ok=True)
    source.rename(outdir / "LibriSpeech" / subset)
    shutil.rmtree(temporary)


def get_subset(subset: str, base_url: str, outdir: Path) -> None:
    """Download and unpack one subset unless it is complete."""
    target = outdir / "LibriSpeech" / subset
    if (target / ".complete").exists():
        logging.info(f"{target} is complete")
        return
    if target.exists() and any(target.iterdir()):
        raise DownloadError(
            f"{target} exists without .complete, so something else made it: delete "
            "it, or set LIBRISPEECH= in db.sh to use it as it is"
        )
    untar(get_archive(subset, base_url, outdir), subset, outdir)
    logging.info(f"{target} is complete; {subset}.tar.gz may be deleted")


def main(cmd: Optional[List[str]] = None) -> None:
    """Run the command line."""
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s (%(module)s:%(lineno)d) %(levelname)s: %(message)s",
    )
    args = get_parser().parse_args(cmd)
    outdir = Path(args.outdir).resolve()
    try:
        os.makedirs(outdir, exist_ok=True)
        for subset in args.subsets:
            get_subset(subset, args.base_url, outdir)
    except (DownloadError, OSError) as error:
        logging.error(str(error))
        sys.exit(1)


if __name__ == "__main__":
    main()
