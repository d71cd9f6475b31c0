"""Data sets with one hostile input each, made by code, with the one reason that the data stage must give for it."""

from __future__ import annotations

import gzip
import json
import os
import struct
import tempfile
import zlib
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import av
import numpy as np
from PIL import Image as Pictures

from vlmflow.data.records import Record, read_records
from vlmflow.data.validate import validate_dataset

Content = bytes | Callable[[], bytes]
SIZE = (40, 30)
NAME = "bad"
FIRST, ANSWER = "conversations[0].value", "conversations[1].value"


class Hostile(NamedTuple):
    """A data set folder: an annotation file with good records around the hostile one, pictures and videos.

    ``kind`` is the reason up to its colon, ``record`` and ``field`` where it is; without ``record`` the file as a
    whole is wrong, which stops the run under every policy. ``keys`` change the configuration.
    """

    kind: str
    record: str | None
    field: str | None
    files: Mapping[str, Content]
    prepare: Callable[[Path], object] = Path.exists
    keys: Mapping[str, Any] = MappingProxyType({})

    def build(self, root: Path) -> None:
        """Write the folder, the good pictures and the good video included."""
        (root / "pictures").mkdir(parents=True)
        for index in range(3):
            Pictures.new("RGB", SIZE, (index, 80, 160)).save(root / "pictures" / f"{index}.png")
        for name, content in self.files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content())
        self.prepare(root)


def validate(place: Path, name: str, **keys: Any) -> tuple[Path, list[Record]]:
    """Check the data set ``place / "mine"``; the folder of the results, ``place / name``, and the accepted records."""
    defaults = {
        "annotations": "all.jsonl", "images": "pictures", "format": "auto", "placeholder": "first",
        "split": {"validation": 0, "test": 0, "seed": 0}, "on_error": "error", "max_dropped": 1,
        "max_pixels": 100_000_000, "limit": None, "duplicate_ids": "suffix", "box_scale": "round-1000",
    }  # fmt: skip
    output = place / name / "manifest.json"
    validate_dataset({**defaults, **keys}, place / "mine", [], place / "cache" / "pictures.sqlite", output)
    return output.parent, read_records(output.parent / "train.jsonl")


# --- records ---------------------------------------------------------------------------------------------------------


def say(*texts: str, roles: tuple[str, str] = ("human", "gpt")) -> list[dict[str, str]]:
    """Turns in LLaVA's spelling, question and answer in turn."""
    return [{"from": roles[index % 2], "value": text} for index, text in enumerate(texts)]


def llava(*texts: str, **keys: Any) -> dict[str, Any]:
    """A LLaVA record about the picture 0.png; ``keys`` replace what makes it right."""
    return {"id": NAME, "image": "0.png", "conversations": say(*(texts or ("<image>\nWhat?", "A sky."))), **keys}


def swift(**keys: Any) -> dict[str, Any]:
    """A record of ms-swift 2 about the picture 0.png."""
    return {"id": NAME, "query": "<image>What?", "response": "A sky.", "images": ["0.png"], **keys}


def grounding(bbox: Any, query: str = "<image>Where is <ref-object>?", **keys: Any) -> dict[str, Any]:
    """A record of ms-swift 2 with boxes in pixels of the picture 0.png."""
    caption = keys.pop("caption", "the sky")
    return swift(query=query, response="<bbox>", objects=[{"caption": caption, "bbox": bbox, **keys}])


def messages(content: Any, **keys: Any) -> dict[str, Any]:
    """A record of ms-swift 3 whose question has this content."""
    said = [{"role": "user", "content": content}, {"role": "assistant", "content": "A sky."}]
    return {"id": NAME, "messages": said, "images": ["0.png"], **keys}


def good(index: int) -> bytes:
    """A line that nothing is wrong with."""
    return json.dumps({**llava(), "id": f"good{index}", "image": f"{index}.png"}).encode() + b"\n"


def line(kind: str, text: Content, field: str | None = None, label: str = "line 2", **keys: Any) -> Hostile:
    """A hostile line of a .jsonl file between two good ones; ``label`` names it in the report."""

    def content() -> bytes:
        return good(1) + (text if isinstance(text, bytes) else text()) + b"\n" + good(2)

    return Hostile(kind, label, field, {"all.jsonl": content}, keys=keys)


def record(kind: str, value: Any, field: str | None = None, **keys: Any) -> Hostile:
    """A hostile record between two good ones; it is named by its id."""
    return line(kind, json.dumps(value).encode(), field, f"{NAME} (line 2)", **keys)


def file(kind: str, content: Content, name: str = "all.jsonl", field: str | None = None, **others: Content) -> Hostile:
    """An annotation file that is wrong as a whole."""
    files = {name: content, **{f"{stem}.json": other for stem, other in others.items()}}
    return Hostile(kind, None, field, files, keys={"annotations": name})


# --- pictures and videos ---------------------------------------------------------------------------------------------


def encoded(form: str, mode: str = "RGB", frames: int = 1, size: tuple[int, int] = SIZE, **options: Any) -> bytes:
    """A picture of noise as the bytes of a file."""
    noise = np.random.default_rng(0).integers(0, 256, (frames, size[1], size[0], 3), np.uint8)
    first, *rest = (Pictures.fromarray(frame).convert(mode) for frame in noise)
    stream = BytesIO()
    first.save(stream, form, **(options | ({"save_all": True, "append_images": rest} if rest else {})))
    return stream.getvalue()


def turned() -> bytes:
    """EXIF data that say: turn it by a quarter."""
    exif = Pictures.Exif()
    exif[0x0112] = 6
    return exif.tobytes()


def of_array(form: str, dtype: str) -> bytes:
    """A grey picture of numbers of this type."""
    stream = BytesIO()
    Pictures.fromarray(np.arange(SIZE[0] * SIZE[1]).reshape(SIZE[1], SIZE[0]).astype(dtype)).save(stream, form)
    return stream.getvalue()


def png(width: int, height: int, data: bytes) -> bytes:
    """A black and white PNG with this compressed content, right or not."""
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)), (b"IDAT", data), (b"IEND", b""))
    packed = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def png_bomb(side: int = 50_000, rows: int = 50) -> bytes:
    """A whole and valid picture of side x side pixels in a few hundred kilobytes."""
    packer = zlib.compressobj(9)
    empty, raw = bytes(rows * (side // 8 + 1)), len(bytes(rows * (side // 8 + 1))) * (side // rows)
    head = packer.compress(empty) + packer.flush(zlib.Z_FULL_FLUSH)
    again = packer.compress(empty) + packer.flush(zlib.Z_FULL_FLUSH)  # knows nothing of what stands before it
    end = struct.pack(">HI", 3 << 8, (raw % 65521) << 16 | 1)  # a last, empty block; Adler-32 of `raw` zeros
    return png(side, side, head + again * (side // rows - 1) + end)


def video(frames: int = 12, sound: bool = False, early_index: bool = True) -> bytes:
    """An MP4 of moving grey, or of silence with ``sound``; ``early_index`` puts its table of contents first."""
    with tempfile.NamedTemporaryFile(suffix=".mp4") as written:
        _film(written.name, frames, sound, {"movflags": "faststart"} if early_index else {})
        return Path(written.name).read_bytes()


def _film(path: str, frames: int, sound: bool, options: dict[str, str]) -> None:
    with av.open(path, "w", options=options) as container:
        if sound:
            track: Any = container.add_stream("aac", rate=8000, layout="mono")
            silence = np.zeros((1, 1024), np.float32)
            some: list[Any] = [av.AudioFrame.from_ndarray(silence, "fltp", "mono") for _ in range(frames)]
            for index, frame in enumerate(some):
                frame.sample_rate, frame.pts = 8000, index * 1024
        else:
            track = container.add_stream("mpeg4", rate=4)
            track.width, track.height, track.pix_fmt = 64, 48, "yuv420p"
            shades = (np.full((48, 64, 3), 20 * index, np.uint8) for index in range(frames))
            some = [av.VideoFrame.from_ndarray(shade, "rgb24") for shade in shades]
        for packet in (packet for frame in [*some, None] for packet in track.encode(frame)):
            container.mux(packet)


PNG = encoded("PNG")


def picture(kind: str, name: str, content: Content | None = None, **keys: Any) -> Hostile:
    """A record about a hostile picture, or about a hostile name of one."""
    made = record(kind, llava(image=name), "image", **keys)
    return made if content is None else made._replace(files={**made.files, f"pictures/{name}": content})


def placed(kind: str, name: str, prepare: Callable[[Path], object]) -> Hostile:
    """A record about something that is no plain file; ``prepare`` puts it into the folder it is given."""
    return picture(kind, name)._replace(prepare=lambda root: prepare(root / "pictures"))


def film(kind: str, name: str, content: Content | None, **files: Content) -> Hostile:
    """A record about a hostile video."""
    value = {"id": NAME, "video": name, "conversations": say("<video>What moves?", "Nothing.")}
    made = record(kind, value, "video")
    media = {} if content is None else {f"pictures/{name}": content}
    return made._replace(files={**made.files, **media, **{f"pictures/{stem}.mp4": c for stem, c in files.items()}})


def outside(folder: Path) -> None:
    """A link out of the data set's folder to a good picture."""
    target = folder.parent.parent / "outside.png"
    target.write_bytes(encoded("PNG"))
    (folder / "x.png").symlink_to(target)


DEEP = b"[" * 100_000 + b"]" * 100_000
JSON_LINES = {
    "broken": line("not valid JSON", b'{"id": "x"'),
    "trailing comma": line("not valid JSON", b'{"id": "x", "conversations": [],}'),
    "single quotes": line("not valid JSON", b"{'id': 'x'}"),
    "comment": line("not valid JSON", b"# a comment"),
    "NaN": line("not valid JSON", b'{"id": NaN, "conversations": []}'),
    "number too large": line("not valid JSON", b'{"id": 1e999, "conversations": []}'),
    "integer of 10,000 digits": line("not valid JSON", b'{"id": ' + b"9" * 10_000 + b"}"),
    "several objects": line("more than one value in a line", good(0).strip() * 2),
    "duplicate key": line("duplicate key", b'{"id": "a", "id": "b", "conversations": []}'),
    "nested too deeply": line("nested too deeply", b'{"id": ' + DEEP + b"}"),
    "nested as deeply as it can be read": line("nested too deeply", b'{"id": ' + DEEP[:300] + DEEP[-300:] + b"}",
                                               None, "[" * 77 + "... (line 2)"),
    "10 MB that are broken": line("not valid JSON", lambda: b'{"id": "' + b"x" * 10_000_000),
    "a list": line("wrong type", b"[1, 2]"),
    "a number": line("wrong type", b"3"),
    "null": line("wrong type", b"null"),
    "NUL bytes in a text": line("not valid JSON", json.dumps(llava()).encode().replace(b"sky", b"s\0y")),
    "half of a surrogate pair": record("broken character", llava("<image>What?", "\ud83d sky"), ANSWER),
    "half of a surrogate pair in a key": record("broken character", llava(**{"\ud83d": 1})),
    "latin-1": line("no UTF-8 text", json.dumps(llava("<image>W?", "Bl\xe4u"), ensure_ascii=False).encode("latin-1"),
                    ANSWER, f"{NAME} (line 2)"),
}  # fmt: skip

TABLE = "image,question,answer\n0.png,What?,A sky.\n"
BOMB = gzip.compress(bytes(1_000_000)) * 150
FILES = {
    "empty": file("empty file", b""),
    "white space": file("empty file", b" \n\t\r\n" * 1000),
    "pipe": Hostile("no file", None, None, {}, lambda root: os.mkfifo(root / "all.jsonl")),
    "empty list": file("empty list", b"[]", "all.json"),
    "UTF-16": file("no UTF-8 text", good(0).decode().encode("utf-16")),
    "truncated list": file("not valid JSON", b"[" + good(0) + b"," + good(1)[:-9], "all.json"),
    "list that ends after a record": file("not valid JSON", b"[" + good(0), "all.json"),
    "list with a trailing comma": file("not valid JSON", b"[" + good(0) + b",]", "all.json"),
    "list without commas": file("not valid JSON", b"[" + good(0) + good(1) + b"]", "all.json"),
    "list with a record nested too deeply": file("not valid JSON", b"[" + good(0) + b"," + DEEP + b"]", "all.json"),
    "list with 10 MB that are broken": file("not valid JSON", lambda: b'[{"id": "' + b"x" * 10_000_000, "all.json"),
    "NUL bytes": file("not valid JSON", b"[\0\0\0]", "all.json"),
    "an object with a list inside": file("no list of records", json.dumps({"data": [llava()]}, indent=2).encode(),
                                         "all.json"),
    "an object that begins with a key": file("no list of records", b'{"data": [\n' + good(0) + b"]}", "all.json"),
    "gzip bomb": file("decompression bomb", gzip.compress(good(0)) + BOMB, "all.jsonl.gz"),
    "gzip bomb of white space": file("decompression bomb", gzip.compress(b" " * 1_000_000) * 150, "all.json.gz"),
    "gzip cut off": file("not readable", gzip.compress(b"".join(map(good, range(3))))[:-20], "all.jsonl.gz"),
    "no gzip": file("not readable", good(0), "all.jsonl.gz"),
    "table with other columns": file("missing column", b"picture;text\n0.png;A sky\n", "all.csv"),
    "table with a column twice": file("repeated column", b"image,image,question,answer\n", "all.csv"),
    "table without rows": file("empty table", b"image,question,answer\n", "all.csv"),
    "table with a quote that never ends": file("not a valid table", (TABLE + '1.png,"Why?,A\n' + TABLE).encode(),
                                               "all.csv"),
    "meta with annotations outside": file("lies outside the folder of the meta file",
                                          b'{"a": {"annotation": "../a.jsonl"}}', "all.json", "a.annotation"),
    "meta with missing annotations": file("no such file", b'{"a": {"annotation": "a.jsonl"}}', "all.json", "a"),
    "meta with annotations of NUL": file("no such file", b'{"a": {"annotation": "a\\u0000"}}', "all.json", "a"),
    "meta with a folder outside": file("picture folder outside", b'{"a": {"annotation": "a.json", "root": "../x"}}',
                                       "all.json", "a.root", a=b"[" + good(0) + b"]"),
    "meta with repeat 0": file("wrong value", b'{"a": {"annotation": "a.json", "repeat_time": 0}}', "all.json",
                               "a.repeat_time", a=b"[" + good(0) + b"]"),
    "meta with repeat without end": file("not valid JSON", b'{"a": {"annotation": "a.json", "repeat_time": 1e999}}',
                                         "all.json", a=b"[" + good(0) + b"]"),
    "meta with an entry twice": file("duplicate key", b'{"a": {"annotation": "a.json"}, "a": {"annotation": "a.json"}}',
                                     "all.json", a=b"[" + good(0) + b"]"),
}  # fmt: skip

NO_VIDEO = "video cannot be decoded"
VIDEOS = {
    "missing": film("missing video", "y.mp4", None),
    "empty": film("empty video", "x.mp4", b""),
    "half": film("video is cut off", "x.mp4", lambda: video()[: -len(video()) // 3]),
    "half, without its index": film(NO_VIDEO, "x.mp4", lambda: video(early_index=False)[:-400]),
    "text named mp4": film(NO_VIDEO, "x.mp4", b"not a film"),
    "playlist named mp4": film(NO_VIDEO, "x.mp4", b"#EXTM3U\n#EXTINF:3,\ny.mp4\n#EXT-X-ENDLIST\n", y=video),
    "list of files named mp4": film(NO_VIDEO, "x.mp4", b"ffconcat version 1.0\nfile y.mp4\n", y=video),
    "playlist": film("unknown kind of video", "x.m3u8", b"#EXTM3U\n#EXTINF:3,\ny.mp4\n#EXT-X-ENDLIST\n", y=video),
    "sound only": film("no picture in the video", "x.mp4", lambda: video(sound=True)),
    "picture named mp4": film(NO_VIDEO, "x.mp4", PNG),
    "out of the folder": film("video outside its folder", "../../x.mp4", None),
    "URL": film("not a file", "rtsp://localhost/x.mp4", None)._replace(field="videos"),
}
