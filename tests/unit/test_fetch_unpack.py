"""Archives that mean harm are refused with one message, and write nothing outside."""

from __future__ import annotations

import hashlib
import io
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from vlmflow.errors import UserError
from vlmflow.fetch import fetch_source
from vlmflow.fetch.unpack import Limits, unpack
from vlmflow.files import read_manifest

Make = Callable[[Path], None]


def zipped(*members: tuple[str, bytes], mode: int = 0, compression: int = zipfile.ZIP_DEFLATED) -> Make:
    """A zip archive; ``mode`` is that of every member (as Unix stores it)."""

    def make(path: Path) -> None:
        with zipfile.ZipFile(path, "w", compression) as archive:
            for name, content in members:
                info = zipfile.ZipInfo(name)
                info.filename, info.compress_type, info.external_attr = name, compression, mode << 16
                archive.writestr(info, content)

    return make


def tarred(*members: tuple[str, bytes | tuple[bytes, str]], mode: str = "w") -> Make:
    """A tar archive of files (their bytes) and of others (their type and link name)."""

    def make(path: Path) -> None:
        with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
            for name, content in members:
                info = tarfile.TarInfo(name)
                if isinstance(content, bytes):
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
                else:
                    info.type, info.linkname = content
                    archive.addfile(info)

    return make


def cut(make: Make, keep: float) -> Make:
    def shorter(path: Path) -> None:
        make(path)
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * keep)])

    return shorter


def encrypted(path: Path) -> None:
    zipped(("a", b"x" * 50))(path)
    content = bytearray(path.read_bytes())
    content[6] |= 1  # general purpose bit 0, in the local header and in the directory
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)


def without_end(path: Path) -> None:
    """A tar cut exactly between two members, which tarfile takes for its end."""
    tarred(("a", b"x" * 512), ("b", b"y" * 512))(path)
    path.write_bytes(path.read_bytes()[:1024])


def long_header(path: Path) -> None:
    """A name that claims to be 2 GiB long, which tarfile would read into memory."""
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 2 << 30
    path.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(4096))


NOISE = hashlib.shake_128(b"noise").digest(3000)
LINK = 0o120777
HOSTILE: dict[str, tuple[str, Make, str]] = {
    "zip ..": ("a.zip", zipped(("../out", b"x")), r"'\.\.' in the path"),
    "zip inner ..": ("a.zip", zipped(("a/../../out", b"x")), r"'\.\.' in the path"),
    "zip absolute": ("a.zip", zipped(("/tmp/out", b"x")), "absolute path"),
    "zip drive": ("a.zip", zipped(("C:/out", b"x")), "drive letter"),
    "zip backslash": ("a.zip", zipped(("..\\out", b"x")), "backslash"),
    "zip no name": ("a.zip", zipped(("", b"x")), "empty or unreadable name"),
    "zip NUL": ("a.zip", zipped(("a\0b", b"x")), "empty or unreadable name"),
    "zip link out": ("a.zip", zipped(("a", b"../../etc/passwd"), mode=LINK), "link that leads outside"),
    "zip link absolute": ("a.zip", zipped(("a", b"/etc/passwd"), mode=LINK), "link that leads outside"),
    "zip device": ("a.zip", zipped(("a", b""), mode=0o020666), "a device"),
    "zip fifo": ("a.zip", zipped(("a", b""), mode=0o010666), "a device"),
    "zip duplicate": ("a.zip", zipped(("a", b"x"), ("a", b"y")), "comes twice"),
    "zip same after normalising": ("a.zip", zipped(("a", b"x"), ("./a", b"y")), "comes twice"),
    "zip file and folder": ("a.zip", zipped(("a", b"x"), ("a/b", b"y")), "comes twice"),
    "zip encrypted": ("a.zip", encrypted, "encrypted"),
    "zip truncated": ("a.zip", cut(zipped(("a", NOISE)), 0.5), "damaged archive"),
    "zip bomb": ("a.zip", zipped(("a", bytes(1_000_000))), "times its size: a bomb"),
    "zip too large": ("a.zip", zipped(("a", NOISE * 700)), "bytes unpacked: a bomb"),
    "zip many": ("a.zip", zipped(*((str(i), b"") for i in range(21))), "more than 20 members"),
    "tar ..": ("a.tar", tarred(("../out", b"x")), r"'\.\.' in the path"),
    "tar absolute": ("a.tar", tarred(("/tmp/out", b"x")), "absolute path"),
    "tar link out": ("a.tar", tarred(("a/b", (tarfile.SYMTYPE, "../../out"))), "link that leads outside"),
    "tar link absolute": ("a.tar", tarred(("a", (tarfile.SYMTYPE, "/etc/passwd"))), "link that leads outside"),
    "tar hard link out": ("a.tar", tarred(("a", (tarfile.LNKTYPE, "../out"))), "link that leads outside"),
    "tar hard link absolute": ("a.tar", tarred(("a", (tarfile.LNKTYPE, "/etc/passwd"))), "link that leads outside"),
    "tar below a link": ("a.tar", tarred(("a", (tarfile.SYMTYPE, "b")), ("a/c", b"x")), "below a link"),
    "tar link to a folder": ("a.tar", tarred(("b/c", b"x"), ("a", (tarfile.SYMTYPE, "b"))), "no file of the archive"),
    "tar circle": (
        "a.tar", tarred(("a", (tarfile.SYMTYPE, "b")), ("b", (tarfile.SYMTYPE, "a"))), "no file of the archive",
    ),
    "tar device": ("a.tar", tarred(("a", (tarfile.CHRTYPE, ""))), "a device"),
    "tar block device": ("a.tar", tarred(("a", (tarfile.BLKTYPE, ""))), "a device"),
    "tar fifo": ("a.tar", tarred(("a", (tarfile.FIFOTYPE, ""))), "a device"),
    "tar duplicate": ("a.tar", tarred(("a", b"x"), ("a", b"y")), "comes twice"),
    "tar truncated": ("a.tar", cut(tarred(("a", NOISE * 10)), 0.5), "damaged archive"),
    "tar cut between": ("a.tar", without_end, "without an end mark"),
    "tar long header": ("a.tar", long_header, "header of 2147483648 bytes"),
    "tar.gz truncated": ("a.tar.gz", cut(tarred(("a", NOISE), mode="w:gz"), 0.7), "damaged archive"),
    "tar.bz2 truncated": ("a.tar.bz2", cut(tarred(("a", NOISE), mode="w:bz2"), 0.7), "damaged archive"),
    "tar.xz truncated": ("a.tar.xz", cut(tarred(("a", NOISE), mode="w:xz"), 0.7), "damaged archive"),
    "tar.gz bomb": ("a.tar.gz", tarred(("a", bytes(1_000_000)), mode="w:gz"), "times its size: a bomb"),
    "tar.xz bomb": ("a.tar.xz", tarred(("a", bytes(1_000_000)), mode="w:xz"), "times its size: a bomb"),
    "zstd": ("a.tar.zst", lambda path: path.write_bytes(b"\x28\xb5\x2f\xfd" + NOISE) and None, "zstd archives"),
    "no archive": ("a.zip", lambda path: path.write_bytes(b"<html>log in</html>") and None, "damaged archive"),
    "empty": ("a.zip", lambda path: path.write_bytes(b"") and None, "damaged archive"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_it_is_refused_and_nothing_is_written_outside(case: str, tmp_path: Path) -> None:
    name, make, reason = HOSTILE[case]
    archive, folder = tmp_path / name, tmp_path / "one" / "two"
    folder.mkdir(parents=True)
    make(archive)
    with pytest.raises(UserError, match=reason) as error:
        unpack(archive, folder, Limits(size=2_000_000, ratio=100, floor=1000, members=20))
    assert name in str(error.value)
    outside = [path for path in tmp_path.rglob("*") if path.is_file() and folder not in path.parents]
    assert outside == [archive]
    assert not any(path.is_symlink() for path in tmp_path.rglob("*"))


def free_space(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("x.zip", zipped(("a", NOISE), ("b/", b""), ("b/c", NOISE))),
        *[(f"x.tar{end}", tarred(("a", NOISE), ("h", (tarfile.LNKTYPE, "a")), ("b", NOISE), mode=f"w:{end[1:]}"))
          for end in ("", ".gz", ".bz2", ".xz")],
    ],
)  # fmt: skip
def test_nothing_is_written_when_it_will_not_fit(
    name: str, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / name)
    (tmp_path / "out").mkdir()
    free_space(monkeypatch, 5999)
    with pytest.raises(UserError, match=rf"{name}: no space left: .* at least 6000 bytes, 5999 are free"):
        unpack(tmp_path / name, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
    free_space(monkeypatch, 6000)
    unpack(tmp_path / name, tmp_path / "out")
    assert (tmp_path / "out" / "a").read_bytes() == NOISE


def test_a_bomb_is_not_measured_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tarred(*((str(i), bytes(1000)) for i in range(100)), mode="w:gz")(tmp_path / "a.tar.gz")
    free_space(monkeypatch, 4000)
    with pytest.raises(UserError, match="at least 6000 bytes, 4000 are free"):
        unpack(tmp_path / "a.tar.gz", tmp_path, Limits(size=5500))


GOOD = {"a.txt": b"one", "deep/er/b.txt": b"two"}


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("x.zip", zipped(*GOOD.items())),
        *[
            (f"x.tar{end}", tarred(*GOOD.items(), mode=f"w{end.replace('.', ':')}"))
            for end in ("", ".gz", ".bz2", ".xz")
        ],
    ],
)
def test_good_archives_are_unpacked_in_their_place(name: str, make: Make, tmp_path: Path) -> None:
    (tmp_path / "mine" / "sub").mkdir(parents=True)
    make(tmp_path / "mine" / "sub" / name)
    (tmp_path / "mine" / "other").write_bytes(b"other")
    sha256 = hashlib.sha256((tmp_path / "mine" / "sub" / name).read_bytes()).hexdigest()
    config = {
        "path": str(tmp_path / "mine"),
        "unpack": [f"*{name[1:]}"],
        "files": {f"sub/{name}": sha256, "other": None},
    }
    output = tmp_path / "results" / "source" / "manifest.json"
    fetch_source(config, output)
    manifest = read_manifest(output)
    assert {name: (output.parent / name).read_bytes() for name in manifest["files"]} == {
        "other": b"other", **{f"sub/{member}": content for member, content in GOOD.items()}
    }  # fmt: skip
    assert manifest["source"]["archives"][f"sub/{name}"]["sha256"] == sha256
    assert (tmp_path / "mine" / "sub" / name).exists()  # the user's own stays
    assert not (tmp_path / "results" / ".source.part").exists()


def test_links_inside_become_the_files_they_mean(tmp_path: Path) -> None:
    members = (
        ("s/link", (tarfile.SYMTYPE, "../b")),
        ("b", (tarfile.SYMTYPE, "a")),
        ("h", (tarfile.LNKTYPE, "a")),
        ("a", b"x"),
    )
    tarred(*members)(tmp_path / "a.tar")
    (tmp_path / "out").mkdir()
    unpack(tmp_path / "a.tar", tmp_path / "out")
    for name in ("s/link", "b", "h", "a"):
        assert (tmp_path / "out" / name).read_bytes() == b"x"
        assert not (tmp_path / "out" / name).is_symlink()


def test_members_of_two_archives_do_not_replace_each_other(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    for name in ("a.zip", "b.zip"):
        zipped(("same", name.encode()))(tmp_path / "mine" / name)
    output = tmp_path / "source" / "manifest.json"
    with pytest.raises(UserError, match=r"b\.zip, record 'same': a name that comes twice"):
        fetch_source({"path": str(tmp_path / "mine"), "unpack": ["*.zip"]}, output)
    assert not output.parent.exists()


def test_a_pattern_without_an_archive_is_said(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_bytes(b"x")
    with pytest.raises(UserError, match=r"no file matches `unpack`: \*\.zip[\s\S]*there is mine\.txt"):
        fetch_source({"path": str(tmp_path / "mine.txt"), "unpack": ["*.zip"]}, tmp_path / "source" / "manifest.json")
