"""`serve`: a model's answers over HTTP, until it is stopped. The service itself is predict/service.py."""

from __future__ import annotations

import socket

from mtdnn_ds.commands.model_flags import ranks, refuse_dtype, whole_number
from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.config.precision import Dtype

LAST_PORT = 65_535


def run(
    *,
    model: str,
    host: str,
    port: str,
    checkpoint: str | None,
    dtype: Dtype,
    max_batch_tokens: str | None,
    max_wait_ms: str,
    max_texts: str,
    max_chars: str,
    max_queue: str,
    trust_plugins: bool,
    log_level: str,
) -> int:
    """Serve `model` on `host`:`port`. Ends with 0 on SIGTERM and SIGINT."""
    problems = refuse_dtype(dtype)
    port_number = whole_number("--port", port, problems) or 0
    batch_tokens = whole_number("--max_batch_tokens", max_batch_tokens, problems)
    wait_ms = whole_number("--max_wait_ms", max_wait_ms, problems, least=0) or 0
    texts = whole_number("--max_texts", max_texts, problems) or 1
    chars = whole_number("--max_chars", max_chars, problems) or 1
    queue = whole_number("--max_queue", max_queue, problems) or 1
    if port_number > LAST_PORT:
        problems.append(f"--port {port}: ports end at {LAST_PORT}")
    if not problems:
        problems += _cannot_listen(host, port_number)
    if problems:
        raise ConfigError(problems)

    from mtdnn_ds.monitor.console import configure_logging

    configure_logging(log_level, 0)  # type: ignore[arg-type]

    from mtdnn_ds.predict.model import MultiTaskModel
    from mtdnn_ds.predict.service import Limits, make_app, serve

    with ranks() as device:
        opened = MultiTaskModel.from_pretrained(
            model, checkpoint, device=device, dtype=dtype, trust_plugins=trust_plugins
        )
        limits = Limits(
            max_texts=texts,
            max_chars=chars,
            max_queue=queue,
            max_wait_seconds=wait_ms / 1000,
            max_batch_tokens=batch_tokens,
        )

        def say_ready() -> None:
            where = f"http://{host}:{port}"
            print(f"{model} with {len(opened.task_names)} tasks on {where}", flush=True)

        serve(make_app(opened, limits, model), host=host, port=port_number, ready=say_ready)
    return 0


def _cannot_listen(host: str, port: int) -> list[str]:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        why = error.strerror or error
        return [f"--host {host} --port {port}: cannot listen there ({why}); give another port"]
    return []
