"""The prepared cache: a folder for each (task, split), with untruncated token ids as memory-mapped Arrow.

Knows rows, not steps or batches.

    CACHE_DIR/TASK-SPLIT-KEY/tokens.arrow
        record batches of ROWS_PER_BATCH rows: tokens, text_lengths, label, source_row, and what the kind adds
    CACHE_DIR/TASK-SPLIT-KEY/meta.json
        rows, tokens, left-out rows by reason, size of tokens.arrow, fingerprint
    CACHE_DIR/TASK-SPLIT-KEY.lock
        held by the process that builds it

KEY hashes the source's contents, how it is read, the tokenizer and CODE_VERSION, but not the sequence length.
A folder is written aside, synced and renamed, so it is either whole or not there.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
import time
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import filelock
import numpy as np
import pyarrow as pa

from mtdnn_ds.config.errors import ConfigError, DataError, UserError
from mtdnn_ds.data.cache.prepared_split import PreparedSplit, Shard
from mtdnn_ds.data.cache.record_batches import blocks, record_batch, schema_of, shard_of
from mtdnn_ds.data.cache.tokenize import SpecialTokens, load_tokenizer, special_tokens, tokenizer_hash
from mtdnn_ds.data.rows.checked import checked_rows
from mtdnn_ds.data.rows.readers import reader_of
from mtdnn_ds.data.sources.names import place_of
from mtdnn_ds.data.sources.tables import fingerprint
from mtdnn_ds.files import sync
from mtdnn_ds.tasks.spec import Source, TaskSpec

log = logging.getLogger(__name__)

CODE_VERSION = 2  # raise it when rows or tokens of the same source would come out differently
ROWS_PER_BATCH = 2**16
DISK_TROUBLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG)

OnBadRow = Literal["refuse", "skip"]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Job:
    """One split to be opened or built."""

    spec: TaskSpec
    split: str
    source: Source
    fingerprint: str
    folder: Path
    tokenizer: Any
    on_bad_row: OnBadRow

    @property
    def name(self) -> str:
        return f"{self.spec.name}/{self.split}"


def prepare(
    specs: Sequence[TaskSpec],
    *,
    tokenizer_path: str,
    cache_dir: str,
    on_bad_row: OnBadRow = "refuse",
    splits: Collection[str] | None = None,
    build: bool = True,
    quiet: bool = False,
    trust_remote_code: bool = False,
) -> dict[str, dict[str, PreparedSplit]]:
    """{task: {split: prepared rows}} of the splits that each task has among `splits` (None: all of them).

    With `build`, what is not in the cache is built: call it on one process per cache folder. Without,
    everything must be there (other processes, after a barrier). `quiet`: what comes from the cache is not
    said. Raises DataError with the problems of all splits together.
    """
    tokenizer = load_tokenizer(tokenizer_path, trust_remote_code=trust_remote_code)
    specials = special_tokens(tokenizer)
    hashed_tokenizer = tokenizer_hash(tokenizer)

    prepared: dict[str, dict[str, PreparedSplit]] = {spec.name: {} for spec in specs}
    problems: list[str] = []
    cached_rows: list[int] = []  # of each split that was in the cache
    for spec, split, source in _wanted(specs, splits):
        try:
            key = _key(spec, source, hashed_tokenizer, on_bad_row)
            job = _Job(
                spec=spec,
                split=split,
                source=source,
                fingerprint=key,
                folder=Path(cache_dir).expanduser() / f"{spec.name}-{split}-{key[:16]}",
                tokenizer=tokenizer,
                on_bad_row=on_bad_row,
            )
            meta, was_cached = _ensure(job, build)
            if was_cached:
                cached_rows.append(meta["rows"])
                if meta["skipped"] and not quiet:
                    rows = f"{job.name}: {meta['rows']:,} rows from the cache in {job.folder}"
                    log.info(rows + _left_out(meta["skipped"]))
            prepared[spec.name][split] = _open(job, meta, specials)
        except UserError as error:
            problems += [problem for problem in error.problems if problem not in problems]

    if problems:
        raise DataError(problems)
    if cached_rows and not quiet:
        log.info(f"{len(cached_rows)} splits with {sum(cached_rows):,} rows from the cache in {cache_dir}")
    return prepared


def _wanted(specs: Sequence[TaskSpec], splits: Collection[str] | None) -> list[tuple[TaskSpec, str, Source]]:
    return [
        (spec, split, source)
        for spec in specs
        for split, source in spec.splits.items()
        if splits is None or split in splits
    ]


def _key(spec: TaskSpec, source: Source, hashed_tokenizer: str, on_bad_row: OnBadRow) -> str:
    how_read = {
        name: value for name, value in asdict(source).items() if name not in ("path", "config", "split")
    }
    if not source.short_rows_left_out:  # younger than the keys of caches and checkpoints
        del how_read["short_rows_left_out"]
    options = {name: value for name, value in spec.options.items() if name in reader_of(spec).options}
    identity = [
        CODE_VERSION,
        fingerprint(source),
        how_read,
        spec.kind,
        spec.labels,
        options,
        hashed_tokenizer,
        on_bad_row,
    ]
    if spec.custom is not None:
        identity.append(spec.custom.fingerprint)  # its file says what a label cell means
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


# Opening


def _read_meta(job: _Job) -> tuple[dict[str, Any] | None, str]:
    """meta.json of a whole folder, or None and what is wrong with it ("" if it is simply not there)."""
    if not job.folder.is_dir():
        return None, ""

    try:
        meta = json.loads((job.folder / "meta.json").read_text(encoding="utf-8"))
        size = (job.folder / "tokens.arrow").stat().st_size
        if size != meta["bytes"]:
            return None, f"tokens.arrow has {size:,} bytes instead of {meta['bytes']:,}"

        counts = [meta["rows"], meta["num_texts"], *dict(meta["skipped"]).values()]
        if not all(isinstance(count, int) and count >= 0 for count in counts):
            raise ValueError("meta.json holds counts that are none")
        _shards(job.folder, meta["rows"])
        return meta, ""
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:  # Arrow's are ValueErrors
        return None, f"{type(error).__name__}: {error}"


def _shards(folder: Path, num_rows: int) -> tuple[Shard, ...]:
    """Zero-copy views into the memory-mapped file. Raises ValueError if it has other rows."""
    reader = pa.ipc.open_file(pa.memory_map(str(folder / "tokens.arrow")))
    shards = tuple(shard_of(reader.get_batch(index)) for index in range(reader.num_record_batches))

    sizes = [len(shard.labels) for shard in shards]
    if sum(sizes) != num_rows or any(size != ROWS_PER_BATCH for size in sizes[:-1]):
        raise ValueError(f"record batches of {sizes} rows do not make up {num_rows} rows")
    return shards


def _open(job: _Job, meta: dict[str, Any], specials: SpecialTokens) -> PreparedSplit:
    shards = _shards(job.folder, meta["rows"])
    return PreparedSplit(
        task=job.spec.name,
        split=job.split,
        num_rows=meta["rows"],
        labels=np.concatenate([shard.labels for shard in shards]),
        source_rows=np.concatenate([shard.source_rows for shard in shards]),
        skipped=meta["skipped"],
        fingerprint=job.fingerprint,
        specials=specials,
        num_texts=meta["num_texts"],
        rows_per_shard=ROWS_PER_BATCH,
        shards=shards,
    )


# Building


def _ensure(job: _Job, build: bool) -> tuple[dict[str, Any], bool]:
    """The split's meta.json, and whether it was in the cache."""
    meta, damage = _read_meta(job)
    if meta is None:
        if not build:
            why = f" ({damage})" if damage else ""
            raise RuntimeError(
                f"{job.name}: {job.folder} is not prepared{why}; "
                "one process per cache folder must prepare it first"
            )
        with _lock(job):
            meta, damage = _read_meta(job)  # another process may have built it while we waited
            if meta is None:
                if damage:
                    log.info(
                        f"{job.name}: the cache in {job.folder} is damaged ({damage}); building it again"
                    )
                return _build(job), False
    return meta, True


def _lock(job: _Job) -> Any:
    """The system frees it when its holder dies, however that ends."""
    lock = filelock.FileLock(f"{job.folder}.lock")
    try:
        job.folder.parent.mkdir(parents=True, exist_ok=True)
        return lock.acquire(timeout=1)
    except filelock.Timeout:
        log.info(f"{job.name}: another process is preparing it; waiting")
        return lock.acquire()
    except OSError as error:
        raise ConfigError(
            f"data.cache_dir={job.folder.parent}: cannot be written ({error.strerror}); "
            "give a folder that can"
        ) from error


def _build(job: _Job) -> dict[str, Any]:
    """Write the split's folder aside and rename it; its meta.json. The caller holds the lock."""
    started = time.perf_counter()
    log.info(f"preparing {job.name} from {place_of(job.source)} ...")

    # We hold the lock, so the builder of a leftover is dead.
    for leftover in job.folder.parent.glob(f"{job.folder.name}.building-*"):
        shutil.rmtree(leftover)

    aside = job.folder.with_name(f"{job.folder.name}.building-{os.getpid()}")
    aside.mkdir()
    try:
        meta = _write(job, aside)
        if job.folder.exists():  # damaged, or this function would not have been called
            shutil.rmtree(job.folder)
        aside.replace(job.folder)
    except OSError as error:
        free = shutil.disk_usage(job.folder.parent).free
        shutil.rmtree(aside, ignore_errors=True)
        if error.errno not in DISK_TROUBLE:
            raise
        raise DataError(
            f"{job.name}: the cache could not be written to {job.folder.parent}: {error.strerror} "
            f"({free / 1e6:,.0f} MB were free); free some space, or give another data.cache_dir"
        ) from error
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    sync(job.folder.parent)

    seconds = time.perf_counter() - started
    log.info(
        f"prepared {job.name}: {meta['rows']:,} rows, {meta['tokens']:,} tokens in {seconds:.1f} s, "
        f"cached in {job.folder}{_left_out(meta['skipped'])}"
    )
    return meta


def _write(job: _Job, folder: Path) -> dict[str, Any]:
    """Write both files of a split to `folder`; meta.json's contents."""
    reader = reader_of(job.spec)
    schema = schema_of(job.tokenizer, reader)
    skipped: Counter[str] = Counter()
    rows = checked_rows(
        job.source,
        reader.parser(job.spec, job.source),
        on_bad_row=job.on_bad_row,
        skipped=skipped,
        grouped=reader.grouped,
    )

    num_rows = num_tokens = 0
    text_counts: set[int] = set()
    tokens_file, meta_file = folder / "tokens.arrow", folder / "meta.json"
    with tokens_file.open("wb") as file, pa.ipc.new_file(file, schema) as writer:
        for block in blocks(rows, ROWS_PER_BATCH):
            batch = record_batch(block, job.tokenizer, schema, reader)
            writer.write_batch(batch)
            num_rows += batch.num_rows
            num_tokens += len(batch.column("tokens").values)
            text_counts.update(len(row.texts) for row in block)

    meta = {
        "task": job.spec.name,
        "split": job.split,
        "source": place_of(job.source),
        "rows": num_rows,
        "tokens": num_tokens,
        "num_texts": text_counts.pop() if len(text_counts) == 1 else 0,
        "skipped": dict(sorted(skipped.items())),
        "bytes": tokens_file.stat().st_size,
        "code_version": CODE_VERSION,
        "fingerprint": job.fingerprint,
    }
    meta_file.write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")
    for path in (tokens_file, meta_file, folder):
        sync(path)
    return meta


def _left_out(skipped: dict[str, int]) -> str:
    return "".join(f"; left out {count:,} rows: {reason}" for reason, count in skipped.items())
