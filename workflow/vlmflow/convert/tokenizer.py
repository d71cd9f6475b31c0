"""Tokenizers of published models as files that any engine loads without their remote code.

Slow tokenizers (a sentencepiece model beside Python code) are rebuilt with the tokenizers library: same pieces, same
ids, and compared with sentencepiece itself on texts of several scripts before anything is written.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as schema
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer

from vlmflow.convert.layout import checking
from vlmflow.errors import UserError
from vlmflow.files import read_json

_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4  # SentencePiece.Type in sentencepiece_model.proto
_BPE = 2  # TrainerSpec.ModelType
_SPACE = "▁"
_NAMED = ("unk_token", "bos_token", "eos_token", "pad_token")
_KEPT = ("model_max_length", "padding_side", "clean_up_tokenization_spaces")
_FETCH = "fetch the file again; git without LFS leaves a pointer of a few lines"
_SAMPLES = (
    'The quick brown fox, 3 x 14 = 42; it\'s 100% "here".',
    "  two spaces\n\nand\ttabs \n",
    "你是一个人工智能助手。图片里有什么？",
    "Ünïcödé, русский текст, 日本語です, 한국어, العربية, 🦊🏽‍🚀",
    "ＦＵＬＬ１２３ ﬁ ½ e\u0301",
    "def f(x):\n    return x**2  # <not a token> [1, 2]",
)
"""Texts on which a rebuilt tokenizer must agree with sentencepiece."""


def load_tokenizer(folder: Path, names: Mapping[str, str] | None = None) -> PreTrainedTokenizerFast:
    """The tokenizer in ``folder``; ``names`` are attributes that it is to get (``start_image_token``: ``<img>``).

    Read are tokenizer.json, or vocab.json and merges.txt, or tokenizer.model; no code is run. Every added token keeps
    the id that added_tokens.json or tokenizer_config.json gives it; tokens of ``names`` that are new come after them.
    One that is rebuilt from tokenizer.model puts no BOS before a text: prompt templates write it.
    Raises :class:`UserError` where that cannot be.
    """
    with checking("broken tokenizer", folder):
        return _tokenizer(folder, names or {})


def _tokenizer(folder: Path, names: Mapping[str, str]) -> PreTrainedTokenizerFast:
    config = _optional(folder / "tokenizer_config.json")
    added = _added_tokens(folder, config)
    if (folder / "tokenizer.json").is_file():
        backend = _from_json(folder / "tokenizer.json")
        _add(backend, added, folder)
    elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        backend = _from_vocabulary(folder)
        _add(backend, added, folder)
    elif (folder / "tokenizer.model").is_file():
        backend = _from_sentencepiece(folder / "tokenizer.model", config, added)
    else:
        raise UserError(
            "missing tokenizer: there is no tokenizer.json, vocab.json with merges.txt, or tokenizer.model",
            file=folder,
        )
    specials = {key: _text(config[key]) for key in _NAMED if config.get(key)} | _special_map(folder)
    backend.add_tokens([AddedToken(token, normalized=False, special=True) for token in _extra_tokens(folder, config)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        extra_special_tokens=dict(names),
        **specials,
        **{key: config[key] for key in _KEPT if key in config},
    )
    _check_ids(tokenizer, added, folder)
    return tokenizer


def check_rows(
    tokenizer: PreTrainedTokenizerFast, rows: int, tokens: Sequence[str], folder: Path, unread: Collection[str] = ()
) -> None:
    """Raise :class:`UserError` unless ``tokens`` have ids of their own and every id is a row of the embedding table.

    ``rows``: of the table. Tokens of ``unread`` never reach the model; they need no row.
    """
    for token in tokens:
        ids = tokenizer(token, add_special_tokens=False)["input_ids"]
        if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
            raise UserError(
                f"wrong tokenizer: it has no token {token}", "is this the folder of the model?", file=folder
            )
    vocabulary = tokenizer.get_vocab()
    beyond = sorted((index, token) for token, index in vocabulary.items() if index >= rows and token not in unread)
    if beyond:
        index, token = beyond[0]
        raise UserError(
            f"wrong tokenizer: token {token} has id {index}, the embedding table {rows} rows"
            + (f" (and {len(beyond) - 1} more)" if len(beyond) > 1 else ""),
            "tokenizer and weights are of different models",
            file=folder,
        )


def check_control(tokenizer: PreTrainedTokenizerFast, config: Mapping[str, Any], folder: Path) -> None:
    """Raise :class:`UserError` unless BOS and EOS of a language model's ``config`` are control tokens."""
    for key in ("bos_token_id", "eos_token_id"):
        named = config.get(key)
        for index in named if isinstance(named, list) else [] if named is None else [named]:
            if index not in tokenizer.added_tokens_decoder:
                raise UserError(
                    f"wrong tokenizer: config.json has {key} {index}, which is no control token of it",
                    "tokenizer and weights are of different models",
                    file=folder,
                )


def _from_json(file: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the tokenizers library raises no other class
        raise UserError(f"broken tokenizer: {error}", _FETCH, file=file) from None


def _from_vocabulary(folder: Path) -> Tokenizer:
    """The byte-level BPE of Qwen2, without tokens of its own."""
    try:
        vocabulary, merges = BPE.read_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    except Exception as error:  # as above
        raise UserError(f"broken tokenizer: vocab.json or merges.txt: {error}", _FETCH, file=folder) from None
    bare = Qwen2Tokenizer(vocab=vocabulary, merges=merges, unk_token=None, eos_token=None, pad_token=None)
    backend: Tokenizer = bare.backend_tokenizer
    return backend


def _from_sentencepiece(file: Path, config: Mapping[str, Any], added: Mapping[int, AddedToken]) -> Tokenizer:
    """A sentencepiece BPE as InternLM2's and Llama's Python code uses it, for each text between added tokens."""
    model: Any = schema.ModelProto()  # type: ignore[attr-defined]
    try:
        model.ParseFromString(file.read_bytes())
    except Exception as error:  # protobuf's DecodeError, whose module differs between its versions
        raise UserError(f"broken tokenizer: not a sentencepiece model: {error}", file=file) from None
    if not model.pieces:
        raise UserError("broken tokenizer: a sentencepiece model without pieces", _FETCH, file=file)
    if model.trainer_spec.model_type != _BPE:
        raise UserError(
            "unsupported tokenizer: a sentencepiece model that is not BPE",
            "give the folder a tokenizer.json",
            file=file,
        )
    names = [piece.piece for piece in model.pieces]
    for index, token in added.items():
        if index < len(names):
            names[index] = token.content  # published models give unused pieces a new name
    vocabulary = {name: index for index, name in enumerate(names)}
    if len(vocabulary) != len(names):
        raise UserError("broken tokenizer: an added token has the name of another piece", file=file)
    backend = Tokenizer(
        BPE(
            vocabulary,
            list(_merges(model, names, vocabulary)),
            unk_token=names[model.trainer_spec.unk_id],
            fuse_unk=True,
            byte_fallback=model.trainer_spec.byte_fallback,
        )
    )
    prefix = model.normalizer_spec.add_dummy_prefix and config.get("add_prefix_space") is not False
    legacy = config.get("legacy", True)
    if legacy:
        steps = [normalizers.Prepend(_SPACE)] if prefix else []
        backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", _SPACE)])
    else:  # a space before the text as a whole; unlike the Python code none before a space
        scheme = "first" if prefix else "never"
        backend.pre_tokenizer = pre_tokenizers.Metaspace(_SPACE, prepend_scheme=scheme, split=False)
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    backend.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    own = {
        index: AddedToken(names[index], normalized=False, special=piece.type == _CONTROL)
        for index, piece in enumerate(model.pieces)
        if piece.type in (_CONTROL, _USER_DEFINED)
    }
    _add(backend, own | dict(added), file.parent)
    model.normalizer_spec.add_dummy_prefix = prefix
    _check_against(backend, model, file, _SAMPLES if legacy else [text.lstrip() for text in _SAMPLES])
    return backend


def _merges(model: Any, names: Sequence[str], vocabulary: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    """Pairs of pieces in the order in which sentencepiece joins them: by the score of what they make."""
    pieces = [
        (piece.score, index)
        for index, piece in enumerate(model.pieces)
        if piece.type == _NORMAL and piece.piece == names[index]
    ]
    usable = {names[index] for _, index in pieces}
    for _, index in sorted(pieces, key=lambda piece: (-piece[0], piece[1])):
        name = names[index]
        halves = [(name[:cut], name[cut:]) for cut in range(1, len(name))]
        pairs = [pair for pair in halves if pair[0] in usable and pair[1] in usable]
        yield from sorted(pairs, key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))


def _added_tokens(folder: Path, config: Mapping[str, Any]) -> dict[int, AddedToken]:
    """Id -> token of all that the official files add, in order of the ids; matched in the text as it is written."""
    specials = set(_special_map(folder).values()) | {_text(config[key]) for key in _NAMED if config.get(key)}
    found = {
        int(index): AddedToken(
            entry["content"],
            normalized=False,
            special=entry.get("special", False),
            lstrip=entry.get("lstrip", False),
            rstrip=entry.get("rstrip", False),
            single_word=entry.get("single_word", False),
        )
        for index, entry in config.get("added_tokens_decoder", {}).items()
    }
    for token, index in _optional(folder / "added_tokens.json").items():
        if not isinstance(index, int):
            raise UserError(f"broken tokenizer: id {index!r} of {token}", file=folder / "added_tokens.json")
        known = found.setdefault(int(index), AddedToken(token, normalized=False, special=token in specials))
        if known.content != token:
            raise UserError(
                f"broken tokenizer: id {index} is {token}, but {known.content} in tokenizer_config.json",
                file=folder / "added_tokens.json",
            )
    return dict(sorted(found.items()))


def _add(backend: Tokenizer, added: Mapping[int, AddedToken], folder: Path) -> None:
    """Add the tokens that are not there, in order; a new one gets the next id, which must be its own."""
    known = backend.get_added_tokens_decoder()
    for index, token in sorted(added.items()):
        if index not in known or known[index].content != token.content:
            backend.add_tokens([token])
        got = backend.token_to_id(token.content)
        if got != index:
            raise UserError(
                f"broken tokenizer: token {token.content} must have id {index} but would get {got}",
                "the vocabulary and added_tokens.json are of different models",
                file=folder,
            )


def _check_ids(tokenizer: PreTrainedTokenizerFast, added: Mapping[int, AddedToken], folder: Path) -> None:
    for index, token in added.items():
        ids = tokenizer(token.content, add_special_tokens=False)["input_ids"]
        if ids != [index]:
            raise UserError(
                f"broken tokenizer: token {token.content} must have id {index} but is read as {ids}", file=folder
            )


def _check_against(backend: Tokenizer, model: Any, file: Path, samples: Sequence[str]) -> None:
    """Compare with sentencepiece itself."""
    original = sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())
    for text in samples:
        ids = backend.encode(text, add_special_tokens=False).ids
        expected = original.encode(text)
        if ids != expected:
            raise UserError(
                f"unsupported tokenizer: rebuilt, it makes {ids[:9]}... of {text!r}, not {expected[:9]}...",
                "give the folder a tokenizer.json made by the model's own code",
                file=file,
            )


def _special_map(folder: Path) -> dict[str, str]:
    content = _optional(folder / "special_tokens_map.json")
    return {key: _text(content[key]) for key in _NAMED if content.get(key)}


def _extra_tokens(folder: Path, config: Mapping[str, Any]) -> list[str]:
    """Special tokens that have no name; those that are not in the vocabulary come after it, in this order."""
    found = _optional(folder / "special_tokens_map.json").get("additional_special_tokens") or []
    return [_text(token) for token in (*found, *(config.get("additional_special_tokens") or []))]


def _text(token: Any) -> str:
    return str(token["content"] if isinstance(token, dict) else token)


def _optional(file: Path) -> dict[str, Any]:
    content = read_json(file) if file.is_file() else {}
    if not isinstance(content, dict):
        raise UserError("broken tokenizer: no JSON object", file=file)
    return content
