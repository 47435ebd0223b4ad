"""Runs the parts of doctor --gpu in processes of their own, and keeps what they find as it comes.

A part that raises, dies or takes longer than its limit costs its own result alone; its process is killed with
all that it started. gpu.json is written again after every row, so that a run cut short still tells.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from mtdnn_ds.check.gpu.page import write_page
from mtdnn_ds.check.gpu.parts import Part
from mtdnn_ds.check.gpu.results import LOG_NAME, PartResult, Report, Row, last_lines, write_json
from mtdnn_ds.check.verify.jobs import rank_environment
from mtdnn_ds.config.errors import Stopped
from mtdnn_ds.config.launch import free_port
from mtdnn_ds.faults import stop_requests
from mtdnn_ds.faults.stop_requests import StopPolicy

SECONDS_BETWEEN_LOOKS = 0.05
REHEARSAL_PATIENCE = 4.0  # times the limits: a rehearsal shows what breaks, on a machine that may be busy

log = logging.getLogger(__name__)


@dataclass(kw_only=True, slots=True)
class _Session:
    """A run of all parts."""

    report: Report
    output: Path
    log_file: IO[bytes]
    begin: float = field(default_factory=time.monotonic)

    @property
    def scratch(self) -> Path:
        return self.output / "scratch"

    @property
    def ops(self) -> Path:
        """What torch compiles: a build that is killed leaves a lock, which here stops nobody else's run."""
        return self.output / "ops"

    def start(self, arguments: Sequence[str], port: int) -> subprocess.Popen[bytes]:
        """`python ARGUMENTS` as the one rank of a run, leader of a session of its own, heard in the log."""
        environment = {**rank_environment(0, 1, port), "TORCH_EXTENSIONS_DIR": str(self.ops.absolute())}
        if self.report.is_rehearsal:
            environment["OMP_NUM_THREADS"] = "1"  # toys are slower on several
        return subprocess.Popen(
            [sys.executable, *arguments],
            env=environment,
            stdout=self.log_file,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )

    def write(self) -> None:
        self.report.seconds = round(time.monotonic() - self.begin, 1)
        write_json(self.report, self.output)


def run_parts(
    parts: Sequence[Part], output: Path, *, is_rehearsal: bool, beside: str | None = None
) -> Report:
    """Run `parts` in their order; returns what they found, which is in `output` too, as JSON and as a page.

    `beside`: a module that runs meanwhile, and is ended with the last part.

    Raises Stopped, after both are written, where the process is asked to stop; and OSError where `output`
    cannot be written.
    """
    output.mkdir(parents=True, exist_ok=True)
    patience = REHEARSAL_PATIENCE if is_rehearsal else 1.0
    results = [
        PartResult(name=part.name, title=part.title, limit_seconds=patience * part.limit_seconds)
        for part in parts
    ]
    report = Report(parts=results, is_rehearsal=is_rehearsal)

    # A request to stop is seen between two looks at the running part, which is then killed.
    stop_requests.set_policy(StopPolicy.BETWEEN_STEPS)
    with (output / LOG_NAME).open("wb") as log_file:
        session = _Session(report=report, output=output, log_file=log_file)
        shutil.rmtree(session.scratch, ignore_errors=True)
        session.scratch.mkdir()
        for lock in session.ops.glob("**/lock"):  # of a run that was killed
            lock.unlink()
        session.write()

        neighbour = None
        if beside is not None:
            neighbour = session.start(["-m", beside], free_port())
        try:
            for group in _groups(parts):
                _run_group(group, session)
            report.is_complete = True
        finally:
            if neighbour is not None:
                _kill(neighbour)
            shutil.rmtree(session.scratch, ignore_errors=True)
            session.write()
            write_page(report, output)
    stop_requests.set_policy(StopPolicy.AT_ONCE)
    return report


def _groups(parts: Sequence[Part]) -> Iterator[list[Part]]:
    """Neighbours that share a process."""
    group: list[Part] = []
    for part in parts:
        if group and part.process != group[-1].process:
            yield group
            group = []
        group.append(part)
    if group:
        yield group


def _run_group(group: Sequence[Part], session: _Session) -> None:
    """Do the parts of a group, in one process while none of them fails."""
    waiting = list(group)
    while waiting:
        worker = _Worker(waiting, session)
        try:
            worker.watch()
        finally:
            worker.kill()
        waiting = [part for part in waiting if session.report.part(part.name).status == "waiting"]


def _kill(process: subprocess.Popen[bytes]) -> None:
    """The leader of a session, with what it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class _Worker:
    """A process that does some parts, and what it has told of them."""

    def __init__(self, parts: Sequence[Part], session: _Session) -> None:
        self._session = session
        self._results = {part.name: session.report.part(part.name) for part in parts}
        self._current = self._results[parts[0].name]
        self._log_begin = session.log_file.tell()

        port = free_port()
        job, self._events = (session.scratch / f"{name}_{port}.json" for name in ("job", "events"))
        self._events.touch()
        self._read = 0  # characters of its events
        values = {
            "parts": [{"name": part.name, "function": part.function} for part in parts],
            "events": str(self._events),
            "scratch": str(session.scratch),
            "is_rehearsal": session.report.is_rehearsal,
        }
        job.write_text(json.dumps(values))

        # Its first part's limit counts from here: imports are a part of it.
        self._begin_part(self._current, time.monotonic())
        self._process = session.start(["-m", "mtdnn_ds.check.gpu.worker", str(job)], port)

    def watch(self) -> None:
        """Until it has done all its parts, or one has ended badly. Raises Stopped."""
        while True:
            code = self._process.poll()  # before the last look: what it tells then is all
            self._take_events()
            if code is not None:
                if self._current.status == "running":
                    self._end("failed", f"its process ended with code {code}\n{self._said()}")
                return

            if self._current.status == "running" and time.monotonic() > self._deadline:
                self._end("timed out", f"no end after {self._current.limit_seconds:g} s\n{self._said()}")
                return

            reason = stop_requests.requested()
            if reason is not None:
                self._end("stopped", reason)
                raise Stopped(
                    f"stopped during {self._current.name} ({reason}); the parts before it are in gpu.json"
                )
            time.sleep(SECONDS_BETWEEN_LOOKS)

    def kill(self) -> None:
        """End it with all its children, if any of them is still there."""
        if self._current.status == "running":  # an exception passes through
            self._end("stopped", "interrupted")
        _kill(self._process)

    def _begin_part(self, part: PartResult, now: float) -> None:
        self._current, self._began = part, now
        self._deadline = now + part.limit_seconds
        part.status = "running"

    def _take_events(self) -> None:
        text = self._events.read_text(encoding="utf-8")
        end = text.rfind("\n") + 1  # what stands after it is not whole yet
        lines, self._read = text[self._read : end].splitlines(), max(end, self._read)
        for line in lines:
            self._take(json.loads(line))
        if lines:
            self._session.write()

    def _take(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind == "begin":
            self._log_begin = event["log_bytes"]
            if event["part"] != self._current.name:
                self._begin_part(self._results[event["part"]], time.monotonic())
        elif kind == "row":
            self._current.rows.append(Row(**event["row"]))
        elif kind == "error":
            self._end("failed", f"{event['what']}\n{self._said()}")
        else:
            self._end("done", "")

    def _end(self, status: Any, error: str) -> None:
        part = self._current
        part.status, part.error = status, error.strip()
        part.seconds = round(time.monotonic() - self._began, 1)
        self._session.write()
        bad = sum(row.status == "failed" for row in part.rows)
        words = f", {bad} of its rows failed" if bad else ""
        log.info(f"{part.name}: {part.status} in {part.seconds:.0f} s, {len(part.rows)} rows{words}")

    def _said(self) -> str:
        """The end of what the running part has said."""
        with (self._session.output / LOG_NAME).open("rb") as stream:
            stream.seek(self._log_begin)
            return last_lines(stream.read().decode(errors="replace"))
