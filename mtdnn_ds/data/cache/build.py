"""The prepared cache: one folder per (task, split) with untruncated token ids as memory-mapped Arrow. Knows rows, not steps or batches.

    CACHE_DIR/TASK-SPLIT-KEY/tokens.arrow   record batches of ROWS_PER_BATCH rows: tokens, text_lengths, label, source_row, and what the kind adds
    CACHE_DIR/TASK-SPLIT-KEY/meta.json      rows, tokens, left-out rows by reason, size of tokens.arrow, fingerprint
    CACHE_DIR/TASK-SPLIT-KEY.lock           held by the process that builds it

KEY hashes the source's contents, how it is read, the tokenizer and CODE_VERSION, but not the sequence length. A folder is
written aside, synced and renamed, so it is either whole or not there.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import filelock
import numpy as np
import pyarrow as pa

from mtdnn_ds.config.errors import ConfigError, DataError, UserError
from mtdnn_ds.data.cache.prepared_split import PreparedSplit, Shard
from mtdnn_ds.data.cache.record_batches import blocks, record_batch, schema_of
from mtdnn_ds.data.cache.tokenize import SpecialTokens, load_tokenizer, special_tokens, tokenizer_hash
from mtdnn_ds.data.rows.checked import checked_rows
from mtdnn_ds.data.rows.readers import reader_of
from mtdnn_ds.data.sources.tables import fingerprint, place_of
from mtdnn_ds.tasks.spec import Source, TaskSpec

CODE_VERSION = 2  # raise it when rows or tokens of the same source would come out differently
ROWS_PER_BATCH = 2**16
DISK_TROUBLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG)
_OWN_COLUMNS = ("tokens", "text_lengths", "label", "source_row")

OnBadRow = Literal["refuse", "skip"]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Job:
    """One split to be opened or built."""

    spec: TaskSpec
    split: str
    source: Source
    fingerprint: str
    folder: Path


def prepare(
    specs: Sequence[TaskSpec],
    *,
    tokenizer_path: str,
    cache_dir: str,
    on_bad_row: OnBadRow = "refuse",
    splits: Collection[str] | None = None,
    build: bool = True,
    say: Callable[[str], None] = print,
    trust_remote_code: bool = False,
) -> dict[str, dict[str, PreparedSplit]]:
    """{task: {split: prepared rows}} of the splits that each task has among `splits` (None: all of them).

    With `build`, what is not in the cache is built: call it on one process per cache folder. Without, everything must be there
    (other processes, after a barrier). Raises DataError with the problems of all splits together.
    """
    tokenizer = load_tokenizer(tokenizer_path, trust_remote_code=trust_remote_code)
    specials = special_tokens(tokenizer)
    hashed_tokenizer = tokenizer_hash(tokenizer)
    prepared: dict[str, dict[str, PreparedSplit]] = {spec.name: {} for spec in specs}
    problems: list[str] = []
    found: list[int] = []  # rows of each split that was in the cache
    for spec in specs:
        for split, source in spec.splits.items():
            if splits is not None and split not in splits:
                continue
            try:
                key = _key(spec, source, hashed_tokenizer, on_bad_row)
                job = _Job(
                    spec=spec,
                    split=split,
                    source=source,
                    fingerprint=key,
                    folder=Path(cache_dir).expanduser() / f"{spec.name}-{split}-{key[:16]}",
                )
                meta, was_there = _ensure(job, tokenizer, on_bad_row, build, say)
                found += [meta["rows"]] if was_there else []
                prepared[spec.name][split] = _open(job, meta, specials)
            except UserError as error:
                problems += [problem for problem in error.problems if problem not in problems]
    if problems:
        raise DataError(problems)
    if found:
        say(f"{len(found)} splits with {sum(found):,} rows from the cache in {cache_dir}")
    return prepared


def _key(spec: TaskSpec, source: Source, hashed_tokenizer: str, on_bad_row: OnBadRow) -> str:
    how_read = {
        name: value for name, value in asdict(source).items() if name not in ("path", "config", "split")
    }
    reading = {name: value for name, value in spec.options.items() if name in reader_of(spec).options}
    identity = [
        CODE_VERSION,
        fingerprint(source),
        how_read,
        spec.kind,
        spec.labels,
        reading,
        hashed_tokenizer,
        on_bad_row,
    ]
    identity += (
        [] if spec.custom is None else [spec.custom.fingerprint]
    )  # its file says what a label cell means
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
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        RecursionError,
    ) as error:  # pa.ArrowInvalid is a ValueError
        return None, f"{type(error).__name__}: {error}"


def _shards(folder: Path, num_rows: int) -> tuple[Shard, ...]:
    """Zero-copy views into the memory-mapped file."""
    reader = pa.ipc.open_file(pa.memory_map(str(folder / "tokens.arrow")))
    batches = [reader.get_batch(index) for index in range(reader.num_record_batches)]
    shards = tuple(shard_of(batch) for batch in batches)
    if sum(len(shard.labels) for shard in shards) != num_rows or any(
        len(shard.labels) != ROWS_PER_BATCH for shard in shards[:-1]
    ):
        raise ValueError(
            f"record batches of {[len(shard.labels) for shard in shards]} rows do not make up {num_rows} rows"
        )
    return shards


def shard_of(batch: pa.RecordBatch) -> Shard:
    """Zero-copy views into a record batch."""
    return Shard(
        tokens=batch.column("tokens").values.to_numpy(zero_copy_only=True),
        offsets=batch.column("tokens").offsets.to_numpy(zero_copy_only=True),
        text_lengths=batch.column("text_lengths").values.to_numpy(zero_copy_only=True),
        text_offsets=batch.column("text_lengths").offsets.to_numpy(zero_copy_only=True),
        labels=batch.column("label").to_numpy(zero_copy_only=True),
        source_rows=batch.column("source_row").to_numpy(zero_copy_only=True),
        extra={name: batch.column(name) for name in batch.schema.names if name not in _OWN_COLUMNS},
    )


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


def _ensure(
    job: _Job, tokenizer: Any, on_bad_row: OnBadRow, build: bool, say: Callable[[str], None]
) -> tuple[dict[str, Any], bool]:
    """The split's meta.json, and whether it was in the cache."""
    name = f"{job.spec.name}/{job.split}"
    meta, damage = _read_meta(job)
    if meta is None and not build:
        raise RuntimeError(
            f"{name}: {job.folder} is not prepared{f' ({damage})' if damage else ''}; one process per cache folder must prepare it first"
        )
    if meta is None:
        with _lock(job, say):
            meta, damage = _read_meta(job)  # another process may have built it while we waited
            if meta is None:
                if damage:
                    say(f"{name}: the cache in {job.folder} is damaged ({damage}); building it again")
                return _build(job, tokenizer, on_bad_row, say), False
    if meta["skipped"]:
        say(f"{name}: {meta['rows']:,} rows from the cache in {job.folder}{_left_out(meta['skipped'])}")
    return meta, True


def _lock(job: _Job, say: Callable[[str], None]) -> Any:
    """The system frees it when its holder dies, however that ends."""
    lock = filelock.FileLock(f"{job.folder}.lock")
    try:
        job.folder.parent.mkdir(parents=True, exist_ok=True)
        return lock.acquire(timeout=1)
    except filelock.Timeout:
        say(f"{job.spec.name}/{job.split}: another process is preparing it; waiting")
        return lock.acquire()
    except OSError as error:
        raise ConfigError(
            f"data.cache_dir={job.folder.parent}: cannot be written ({error.strerror}); give a folder that can"
        ) from error


def _build(job: _Job, tokenizer: Any, on_bad_row: OnBadRow, say: Callable[[str], None]) -> dict[str, Any]:
    name, started = f"{job.spec.name}/{job.split}", time.perf_counter()
    say(f"preparing {name} from {place_of(job.source)} ...")
    for leftover in job.folder.parent.glob(
        f"{job.folder.name}.building-*"
    ):  # we hold the lock, so its builder is dead
        shutil.rmtree(leftover)
    aside = job.folder.with_name(f"{job.folder.name}.building-{os.getpid()}")
    aside.mkdir()
    try:
        meta = _write(job, aside, tokenizer, on_bad_row)
        if job.folder.exists():  # damaged, or this function would not have been called
            shutil.rmtree(job.folder)
        aside.replace(job.folder)
    except OSError as error:
        free = shutil.disk_usage(job.folder.parent).free
        shutil.rmtree(aside, ignore_errors=True)
        if error.errno not in DISK_TROUBLE:
            raise
        raise DataError(
            f"{name}: the cache could not be written to {job.folder.parent}: {error.strerror} ({free / 1e6:,.0f} MB were free); "
            "free some space, or give another data.cache_dir"
        ) from error
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    sync(job.folder.parent)
    seconds = time.perf_counter() - started
    say(
        f"prepared {name}: {meta['rows']:,} rows, {meta['tokens']:,} tokens in {seconds:.1f} s, cached in {job.folder}{_left_out(meta['skipped'])}"
    )
    return meta


def _write(job: _Job, aside: Path, tokenizer: Any, on_bad_row: OnBadRow) -> dict[str, Any]:
    reader = reader_of(job.spec)
    schema = schema_of(tokenizer, reader)
    skipped: Counter[str] = Counter()
    rows = checked_rows(
        job.source,
        reader.parser(job.spec, job.source),
        on_bad_row=on_bad_row,
        skipped=skipped,
        grouped=reader.grouped,
    )
    num_rows = num_tokens = 0
    text_counts: set[int] = set()
    path = aside / "tokens.arrow"
    with path.open("wb") as file, pa.ipc.new_file(file, schema) as writer:
        for block in blocks(rows, ROWS_PER_BATCH):
            batch = record_batch(block, tokenizer, schema, reader)
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
        "bytes": path.stat().st_size,
        "code_version": CODE_VERSION,
        "fingerprint": job.fingerprint,
    }
    (aside / "meta.json").write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")
    for written in (path, aside / "meta.json", aside):
        sync(written)
    return meta


def _left_out(skipped: dict[str, int]) -> str:
    return "".join(f"; left out {count:,} rows: {reason}" for reason, count in skipped.items())


def sync(path: Path) -> None:
    """Make a file or a folder's entries durable before anything refers to them."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
