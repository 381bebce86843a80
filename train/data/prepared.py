"""What training reads: a tokenizer and the token caches of a configuration's source, made where they are not there."""

import dataclasses
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import sentencepiece

from mom_jax.fields import ConfigError, require
from train.config import DataConfig
from train.data import token_files
from train.data.cache import CHECKED, FORMAT, META, TokenCache, build_folder, damaged, digest
from train.data.documents import SIDES, Broken, Source, side_of
from train.data.encode import Report, encode
from train.data.sources.kinds import open_source
from train.data.token_files import TokenFiles
from train.data.tokenizers import Tokenizer, find, load
from train.data.tokenizers.spm import SETTINGS, SentencePieceTokenizer, train_sentencepiece
from train.data.tokenizers.token_ids import IdsTokenizer
from train.files import read_record, write_record

# Characters that a tokenizer is trained on: so many that more change little, so few that they fit into memory.
TRAINING_TEXT = 2**26

Say = Callable[[str], None]
Reporter = Callable[[str], Report]


@dataclasses.dataclass(frozen=True, eq=False)
class Prepared:
    """All that training needs of the data.

    names, weights: of the source's components: itself or, of a mixture, what is mixed; weights add up to 1. train,
    validation: their caches.
    """

    tokenizer: Tokenizer
    names: tuple[str, ...]
    weights: tuple[float, ...]
    train: tuple[TokenCache, ...]
    validation: tuple[TokenCache, ...]


def components(source: str) -> tuple[tuple[str, float], ...]:
    """The sources that `source` mixes with their shares, which add up to 1; a plain source is the only one.

    Raises `ConfigError` naming `data.source` for a mixture that cannot be.
    """
    if not source.startswith("mix:"):
        return ((source, 1.0),)
    pairs = [part.partition("=") for part in re.split(r",(?=[0-9.]+=)", source.removeprefix("mix:"))]
    must = "must be mix:WEIGHT=SOURCE,WEIGHT=SOURCE with positive weights"
    good = all(re.fullmatch(r"\d*\.?\d+", weight) and float(weight) > 0 and name for weight, _, name in pairs)
    require(good, "data.source", source, must)
    require(not any(name.startswith("mix:") for _, _, name in pairs), "data.source", source, "a mixture of mixtures")
    total = sum(float(weight) for weight, _, _ in pairs)
    return tuple((name, float(weight) / total) for weight, _, name in pairs)


def prepare(config: DataConfig, notify: Say = lambda text: None, progress: Reporter | None = None) -> Prepared:
    """Loads the tokenizer and the token caches of `config`, and makes what is not there yet under `config.cache`.

    say: called with a line of text where something is made. progress: given what is tokenized, returns what is called
    on the way; by default ten lines are said. Neither is called when all is there. Raises `ConfigError` naming the
    field of `data` that cannot be: a source without documents, a missing tokenizer, a split with an empty side, a
    cache that cannot be written.
    """
    parts = components(config.source)
    opened = [_open(name, config) for name, _ in parts]
    weights = tuple(weight for _, weight in parts)
    tokenizer = _tokenizer(config, opened, weights, notify)
    caches: dict[Any, list[TokenCache]] = {side: [] for side in SIDES}
    for source in opened:
        folder = _cache(config, source, tokenizer, notify, progress or (lambda what: _lines(what, notify)))
        for side in SIDES:
            cache = TokenCache.open(folder, side)
            cache.verify(CHECKED)
            caches[side].append(cache)
    tokenizer = tokenizer or _tokenizer_of(opened[0], caches["train"][0])
    _check_fits(config, opened, caches["train"], tokenizer)
    names = tuple(name for name, _ in parts)
    return Prepared(tokenizer, names, weights, tuple(caches["train"]), tuple(caches["validation"]))


def _open(name: str, config: DataConfig) -> Source | TokenFiles:
    if name.startswith("bin:"):
        return token_files.open_token_files(name)
    return open_source(name, config.validation_fraction, config.on_bad, config.cache)


def _tokenizer(
    config: DataConfig, opened: list[Source | TokenFiles], weights: tuple[float, ...], notify: Say
) -> Tokenizer | None:
    """The tokenizer that the configuration names, or None where token files come without one."""
    if config.tokenizer != "sentencepiece":
        return load(config.tokenizer)
    texts = [(source, weight) for source, weight in zip(opened, weights, strict=True) if isinstance(source, Source)]
    if len(texts) == len(opened):
        return _trained(config, texts, notify)
    if texts:
        must = "cannot be trained for token files; give the tokenizer that they were made with"
        raise ConfigError(f"data.tokenizer={config.tokenizer!r}: {must}")
    beside = {path for source in opened if isinstance(source, TokenFiles) if (path := find(source.folder))}
    return load(min(beside)) if beside else None


def _tokenizer_of(source: Source | TokenFiles, cache: TokenCache) -> Tokenizer:
    """For token files without a tokenizer: one that knows the ids."""
    return IdsTokenizer(cache.meta["vocab_size"], cache.meta["eos_id"])


def _trained(config: DataConfig, texts: list[tuple[Source, float]], notify: Say) -> Tokenizer:
    recipe = {
        "format": FORMAT,
        "sources": [[source.facts, weight] for source, weight in texts],
        "validation_fraction": config.validation_fraction,
        "characters": TRAINING_TEXT,
        "vocab_size": config.vocab_size,
        "settings": SETTINGS,
        "sentencepiece": sentencepiece.__version__,
        "files": [SentencePieceTokenizer.file_name, META],
    }
    folder = _root(config) / f"tokenizer-{digest(recipe)}"

    def fill(partial: Path) -> None:
        notify(f"training a tokenizer of {config.vocab_size} pieces on {config.source}")
        sample = (text for source, weight in texts for text in _sample(source, config, int(weight * TRAINING_TEXT)))
        tokenizer = SentencePieceTokenizer(train_sentencepiece(sample, config.vocab_size))
        tokenizer.save(partial)
        write_record(partial / META, {"fingerprint": tokenizer.fingerprint})

    if not folder.exists():
        build_folder(folder, fill, notify)
    try:
        tokenizer = load(folder / SentencePieceTokenizer.file_name)
        if read_record(folder / META, META) == {"fingerprint": tokenizer.fingerprint}:
            return tokenizer
    except ConfigError:  # neither field is the user's
        pass
    raise damaged(folder, "does not have the tokenizer that was trained")


def _sample(source: Source, config: DataConfig, characters: int) -> Iterator[str]:
    """Training documents of about so many characters in all, as many of every part of the source."""
    quota = characters // max(len(source.parts), 1)
    for part in source.parts:
        left = quota
        for document in source.read(part) if part.side != "validation" else ():
            held_out = side_of(part.side, document.name, config.validation_fraction) != "train"
            if held_out or isinstance(document, Broken):
                continue
            yield document.text[:left]
            left -= len(document.text)
            if left <= 0:
                break


def _cache(
    config: DataConfig, source: Source | TokenFiles, tokenizer: Tokenizer | None, notify: Say, progress: Reporter
) -> Path:
    """The folder of a component's cache."""
    if isinstance(source, TokenFiles):
        return token_files.index(_root(config), source, notify)
    assert tokenizer is not None
    folder, meta = _text_cache(config, source, tokenizer)
    if not folder.exists():
        report = progress(f"tokenizing {source.source}")
        encode(folder, source, tokenizer, config.validation_fraction, meta, report, notify)
    return folder


def _text_cache(config: DataConfig, source: Source, tokenizer: Tokenizer) -> tuple[Path, dict[str, Any]]:
    """A source's cache: its folder, and what its contents depend on."""
    meta = {
        "format": FORMAT,
        "source": source.facts,
        "split": {"rule": _rule(source), "validation_fraction": config.validation_fraction},
    }
    return _root(config) / f"data-{digest({**meta, 'tokenizer': tokenizer.fingerprint})}", meta


def cache_folders(config: DataConfig, tokenizer: Tokenizer | None) -> list[Path]:
    """Where the caches of a configuration's components are, or would be; nothing is made. Raises `ConfigError` for a
    source that is not there."""
    folders = []
    for name, _ in components(config.source):
        source = _open(name, config)
        if isinstance(source, TokenFiles):
            folders.append(token_files.index_folder(_root(config), source))
        elif tokenizer is not None:
            folders.append(_text_cache(config, source, tokenizer)[0])
    return folders


def _rule(source: Source) -> str:
    own = all(part.side is not None for part in source.parts)
    return "the source's own" if own else "sha256 of the document's name"


def _check_fits(
    config: DataConfig, opened: Sequence[Source | TokenFiles], caches: Sequence[TokenCache], tokenizer: Tokenizer
) -> None:
    """Raises `ConfigError` where token files were made with another tokenizer than the one that is used, or two of them
    with different ones."""
    ids_only = isinstance(tokenizer, IdsTokenizer)
    known = None if ids_only else tokenizer.fingerprint
    for source, cache in zip(opened, caches, strict=True):
        meta = cache.meta
        theirs, same = (meta["vocab_size"], meta["eos_id"]), meta["tokenizer"] in (None, known or meta["tokenizer"])
        known = known or meta["tokenizer"]
        if theirs == (tokenizer.vocab_size, tokenizer.eos_id) and same:
            continue
        made = f"{theirs[0]} ids, the end of a document is {theirs[1]}, fingerprint {str(meta['tokenizer'])[:12]}"
        used = f"{tokenizer.vocab_size} ids, the end is {tokenizer.eos_id}, fingerprint {str(known)[:12]}"
        must = f"{source.source} was made with another one ({made}; not {used})"
        raise ConfigError(f"data.tokenizer={config.tokenizer!r}: {must}")


def expected_vocabulary(data: DataConfig) -> int:
    """How many ids the data will have, without preparing it. Raises `ConfigError` where only preparing can tell."""
    if data.tokenizer != "sentencepiece":
        return load(data.tokenizer).vocab_size
    name, _ = components(data.source)[0]
    if not name.startswith("bin:"):
        return data.vocab_size  # a tokenizer that is trained has as many as it is asked for
    size = token_files.open_token_files(name).vocab_size
    require(size is not None, "model.vocab_size", 0, f"must be given: {name} does not say it")
    return size or 0


def _root(config: DataConfig) -> Path:
    return Path(os.path.expanduser(config.cache))


def _lines(what: str, notify: Say) -> Report:
    """Ten lines on the way."""
    said = -1

    def report(share: float, tokens: int) -> None:
        nonlocal said
        if int(share * 10) > said:
            said = int(share * 10)
            notify(f"{what}: {share:.0%}, {tokens:,} tokens")

    return report
