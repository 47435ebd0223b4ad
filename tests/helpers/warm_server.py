"""The warm process behind helpers/warm.py: `python warm_server.py SOCKET` imports everything once and forks a
child for each request. Not a test file.

A request is one JSON line with the arguments of `python`, the environment and the folder, and two open files
for the child's output. The answers are two lines: the child's process id, and its exit code (negative: the
signal) when it has ended.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
import traceback
from pathlib import Path
from typing import Any

# What a run imports sooner or later. All of it is only read by the children, so its memory is shared.
MODULES = (
    "datasets",
    "deepspeed",
    # deepspeed.initialize imports these.
    "deepspeed.module_inject.auto_ep_layer",
    "deepspeed.ops.op_builder.all_ops",
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "setuptools",
    "torch._dynamo.repro.after_dynamo",
    "torch._inductor.compile_fx",
    "fire",
    "scipy.stats",
    "seqeval.metrics",
    "sklearn.metrics",
    "tensorboard.plugins.hparams.api_pb2",
    "tensorboard.plugins.hparams.metadata",
    "torch.utils.tensorboard",
    "transformers.convert_slow_tokenizer",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.bert.modeling_bert",
    "transformers.models.bert.tokenization_bert",
    "mtdnn_ds.api",
    "mtdnn_ds.commands.evaluate",
    "mtdnn_ds.commands.predict",
    "mtdnn_ds.commands.train",
    "mtdnn_ds.train.preflight.checks",
    "mtdnn_ds.train.stages",
    "mtdnn_ds.train.trainer",
)


def become(request: dict[str, Any]) -> int:
    """Run `python ARGUMENTS` in this process, as a new interpreter would; returns its exit code."""
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    # A shell's background job, and what it starts, ignores SIGINT; a child that is told to stop must hear it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))

    first, *rest = request["arguments"]
    try:
        if first == "-m":
            sys.argv = ["", *rest[1:]]
            sys.path[0] = request["folder"]
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        else:
            sys.argv = [first, *rest]
            sys.path[0] = str(Path(first).resolve().parent)
            runpy.run_path(first, run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
            return 1
        return end.code or 0
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def end_as_an_interpreter_does(code: int) -> None:
    import atexit
    import threading

    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


def start_child(request: dict[str, Any], output: int, errors: int) -> int:
    child = os.fork()
    if child:
        return child

    os.setsid()
    nothing = os.open(os.devnull, os.O_RDONLY)
    for file, number in ((nothing, 0), (output, 1), (errors, 2)):
        os.dup2(file, number)
    os.closerange(3, 256)
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)

    code = 1
    try:
        code = become(request)
    finally:
        end_as_an_interpreter_does(code)
    raise AssertionError("not reached")


def serve(address: str) -> None:
    for name in MODULES:
        importlib.import_module(name)
    gc.freeze()  # the collector leaves what is shared alone

    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(64)

    woken, wake = socket.socketpair()
    woken.setblocking(False)
    wake.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
    askers: dict[int, socket.socket] = {}
    print("ready", flush=True)

    while True:
        # stdin ends with the process that started this one.
        ready, _, _ = select.select([listener, woken, sys.stdin], [], [])
        if sys.stdin in ready:
            return

        if listener in ready:
            asker, _ = listener.accept()
            message, files, _, _ = socket.recv_fds(asker, 2**20, 2)
            while not message.endswith(b"\n"):
                message += asker.recv(2**20)
            child = start_child(json.loads(message), *files)
            for file in files:
                os.close(file)
            askers[child] = asker
            asker.sendall(f"{child}\n".encode())

        if woken in ready:
            woken.recv(4096)
            while askers:
                child, status = os.waitpid(-1, os.WNOHANG)
                if child == 0:
                    break
                asker = askers.pop(child)
                asker.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
                asker.close()


if __name__ == "__main__":
    serve(sys.argv[1])
