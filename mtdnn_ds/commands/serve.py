"""`serve`: a model's answers over HTTP, until it is stopped. The service itself is predict/service.py."""

from __future__ import annotations

import socket

from mtdnn_ds.commands.model_flags import ranks, whole_number
from mtdnn_ds.config.errors import ConfigError


def run(
    *, model: str, host: str, port: str, checkpoint: str | None, max_batch_tokens: str | None, max_wait_ms: str, max_texts: str, max_chars: str,
    max_queue: str, trust_plugins: bool, log_level: str,
) -> int:  # fmt: skip
    """Serve `model` on `host`:`port`. Ends with 0 on SIGTERM and SIGINT."""
    problems: list[str] = []
    numbers = {
        "port": whole_number("--port", port, problems),
        "max_batch_tokens": whole_number("--max_batch_tokens", max_batch_tokens, problems),
        "max_wait_ms": whole_number("--max_wait_ms", max_wait_ms, problems, least=0),
        "max_texts": whole_number("--max_texts", max_texts, problems),
        "max_chars": whole_number("--max_chars", max_chars, problems),
        "max_queue": whole_number("--max_queue", max_queue, problems),
    }
    if (numbers["port"] or 0) > 65_535:
        problems.append(f"--port {port}: ports end at 65535")
    if not problems and (taken := _cannot_listen(host, int(port))):
        problems.append(taken)
    if problems:
        raise ConfigError(problems)

    from mtdnn_ds.monitor.console import configure_logging

    configure_logging(log_level, 0)  # type: ignore[arg-type]

    from mtdnn_ds.predict.model import MultiTaskModel
    from mtdnn_ds.predict.service import Limits, make_app, serve

    with ranks() as device:
        opened = MultiTaskModel.from_pretrained(model, checkpoint, device=device, trust_plugins=trust_plugins)
        limits = Limits(
            max_texts=numbers["max_texts"] or 1, max_chars=numbers["max_chars"] or 1, max_queue=numbers["max_queue"] or 1,
            max_wait_seconds=(numbers["max_wait_ms"] or 0) / 1000, max_batch_tokens=numbers["max_batch_tokens"],
        )  # fmt: skip
        where = f"http://{host}:{port}"
        serve(
            make_app(opened, limits, model), host=host, port=int(port),
            ready=lambda: print(f"{model} with {len(opened.task_names)} tasks on {where}", flush=True),
        )  # fmt: skip
    return 0


def _cannot_listen(host: str, port: int) -> str | None:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        return (
            f"--host {host} --port {port}: cannot listen there ({error.strerror or error}); give another port"
        )
    return None
