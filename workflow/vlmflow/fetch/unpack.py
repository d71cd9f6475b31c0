"""Archives, unpacked without trust: nothing is written outside, no link is made, no bomb goes off."""

from __future__ import annotations

import lzma
import posixpath
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Self

from vlmflow.errors import UserError
from vlmflow.fetch.names import unsafe
from vlmflow.fetch.trouble import out_of_space

_BLOCK = 1 << 20
_LONG_HEADERS = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME,
                 tarfile.GNUTYPE_LONGLINK)  # fmt: skip
_LONGEST_HEADER = 1 << 20  # bytes
_ZSTANDARD = b"\x28\xb5\x2f\xfd"
_DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    ValueError,
    EOFError,
    OSError,
)


@dataclass(frozen=True)
class Limits:
    """What an archive may become."""

    size: int = 1 << 40  # bytes of all members
    ratio: int = 200  # bytes of all members per byte of the archive; deflate reaches 1032, pictures and text 1 to 30
    floor: int = 1 << 28  # bytes from which on the ratio counts
    members: int = 10_000_000


class _Header(tarfile.TarInfo):
    """A tar header that is not read into memory when it claims to be as long as a film."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        header = super().frombuf(buf, encoding, errors)
        if header.type in _LONG_HEADERS and header.size > _LONGEST_HEADER:
            raise tarfile.ReadError(f"a header of {header.size} bytes")
        return header


@dataclass
class _Member:
    """One entry: a file, which ``source`` opens, a folder, or a link to another member (``target``, normalised)."""

    name: str
    folder: bool = False
    source: IO[bytes] | None = None
    target: str | None = None


def unpack(archive: Path, folder: Path, limits: Limits = Limits()) -> None:
    """Write the members of a zip or tar (plain, gz, bz2, xz) archive below ``folder``.

    Links to other files of the archive become those files (hard links). Raises :class:`UserError` that names archive
    and member for a name that leads outside, a link that does, a device, a name that comes twice or exists, an
    encrypted member, more than ``limits`` allow, or damage; what was written until then is left for the caller to drop.
    Nothing is written when the disk has less free space than the members say that they need.
    """
    _Unpacking(archive, folder, limits).run()


class _Unpacking:
    def __init__(self, archive: Path, folder: Path, limits: Limits) -> None:
        self.archive, self.folder, self.limits = archive, folder, limits
        self.packed, self.written, self.count = archive.stat().st_size, 0, 0
        self.member = ""  # the one at work, for messages
        self.links: dict[str, str] = {}
        self.files: set[str] = set()

    def run(self) -> None:
        try:
            self._check_space()
            for member in self._members():
                self._take(member)
            for name in self.links:
                self.member = name
                self._link(name)
        except _DAMAGE as error:
            if out_of_space(error):
                raise
            raise self._refused(
                f"damaged archive: {error or type(error).__name__}", "fetch or pack it again"
            ) from error

    def _members(self) -> Iterator[_Member]:
        yield from self._zip() if self._magic()[:2] == b"PK" else self._tar()

    def _magic(self) -> bytes:
        with self.archive.open("rb") as stream:
            magic = stream.read(4)
        if magic == _ZSTANDARD:
            raise self._refused("zstd archives cannot be unpacked", "unpack it yourself and give the folder as `path`")
        return magic

    def _check_space(self) -> None:
        free, most = shutil.disk_usage(self.folder).free, min(self.limits.size, self._most_by_ratio())
        if most <= free:  # saves reading a compressed tar twice
            return
        needed = 0
        for size in islice(self._sizes(), self.limits.members):
            needed += size
            if needed > most:  # a bomb is not read to its end
                break
        if needed > free:
            raise self._refused(
                f"no space left: unpacking needs at least {needed} bytes, {free} are free",
                "free some or let `results` be on another disk, then run again: what arrived is kept",
            )

    def _sizes(self) -> Iterator[int]:
        """Bytes of each member, as the archive declares them."""
        if self._magic()[:2] == b"PK":
            with zipfile.ZipFile(self.archive) as packed:
                yield from (info.file_size for info in packed.infolist())
        else:
            with tarfile.open(self.archive, "r:*", tarinfo=_Header) as opened:
                yield from (info.size if info.isreg() else 0 for info in opened)

    def _most_by_ratio(self) -> int:
        return max(self.limits.floor, self.limits.ratio * self.packed)

    def _zip(self) -> Iterator[_Member]:
        with zipfile.ZipFile(self.archive) as opened:
            for info in opened.infolist():
                self.member = info.orig_filename
                self._check_name(info.filename and info.orig_filename)  # before the library reads an empty one
                mode = info.external_attr >> 16
                if info.flag_bits & 1:
                    raise self._refused("encrypted archive member", "unpack it yourself and give the folder as `path`")
                if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK):
                    raise self._refused("a device or other special file")
                if info.is_dir():
                    yield _Member(info.orig_filename, folder=True)
                    continue
                try:
                    source = opened.open(info)
                except NotImplementedError as error:
                    raise self._refused(f"packed in an unknown way: {error}", "pack it again") from error
                with source:
                    if stat.S_ISLNK(mode):
                        target = source.read(4096).decode("utf-8", "surrogateescape")
                        yield _Member(info.orig_filename, target=self._inside(info.orig_filename, target))
                    else:
                        yield _Member(info.orig_filename, source=source)

    def _tar(self) -> Iterator[_Member]:
        with tarfile.open(self.archive, "r:*", tarinfo=_Header) as opened:
            for info in opened:
                self.member = info.name
                if info.isdir():
                    yield _Member(info.name, folder=True)
                elif info.issym():
                    yield _Member(info.name, target=self._inside(info.name, info.linkname))
                elif info.islnk():
                    yield _Member(info.name, target=self._inside("", info.linkname))
                elif info.isreg():
                    yield _Member(info.name, source=opened.extractfile(info))
                else:
                    raise self._refused("a device or other special file")
            self.member = ""
            opened.fileobj.seek(opened.offset)
            if not opened.fileobj.read(1):
                raise EOFError("it ends without an end mark")

    def _inside(self, name: str, target: str) -> str:
        """The member that a link means; links are resolved by name, so that none is ever followed on the disk."""
        path = posixpath.normpath(posixpath.join(posixpath.dirname(name), target))
        if trouble := unsafe(target if target.startswith("/") else path):
            raise self._refused(f"a link that leads outside ({trouble}): to {target!r}")
        return path

    def _take(self, member: _Member) -> None:
        self.count += 1
        if self.count > self.limits.members:
            raise self._refused(f"more than {self.limits.members} members", "unpack it yourself if you trust it")
        self._check_name(member.name)
        name = posixpath.normpath(member.name)
        path = self.folder / name
        if member.folder:
            self._make_folder(path)
            return
        if name in self.links or path.exists():
            raise self._refused("a name that comes twice, or is that of another file of the source")
        if member.target is not None:
            self.links[name] = member.target
            return
        self._make_folder(path.parent)
        assert member.source is not None
        with path.open("xb") as sink:
            while block := member.source.read(_BLOCK):
                self._count(len(block))
                sink.write(block)
        self.files.add(name)

    def _check_name(self, name: str) -> None:
        if trouble := unsafe(name):
            raise self._refused(f"a member that could be written outside: {trouble}")

    def _make_folder(self, path: Path) -> None:
        parents = {
            parent.as_posix() for parent in (path.relative_to(self.folder), *path.relative_to(self.folder).parents)
        }
        if parents & self.links.keys():
            raise self._refused("a member below a link")
        try:
            path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise self._refused("a name that comes twice, as a file and as a folder") from error

    def _count(self, size: int) -> None:
        self.written += size
        if self.written > self.limits.size:
            raise self._refused(
                f"more than {self.limits.size} bytes unpacked: a bomb", "unpack it yourself if you trust it"
            )
        if self.written > self._most_by_ratio():
            reason = f"unpacks to more than {self.limits.ratio} times its size: a bomb"
            raise self._refused(reason, "unpack it yourself if you trust it, and give the folder as `path`")

    def _link(self, name: str) -> None:
        target, steps = self.links[name], 0
        while target in self.links and steps <= len(self.links):
            target, steps = self.links[target], steps + 1
        if target not in self.files:
            raise self._refused(f"a link to what is no file of the archive: {target!r}")
        path = self.folder / name
        self._make_folder(path.parent)
        path.hardlink_to(self.folder / target)

    def _refused(self, reason: str, advice: str = "do not use this archive, or pack it again without it") -> UserError:
        return UserError(reason, advice, file=self.archive.name, record=repr(self.member) if self.member else None)
