"""A verb whose packages are missing says which extra of mtdnn_ds brings them."""

from __future__ import annotations

import importlib
import sys

import pytest

from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.config.extras import EXTRAS, require_extra


def test_packages_that_are_there_are_no_problem() -> None:
    refused = []
    for extra in EXTRAS:
        try:
            require_extra(extra, "anything")
        except ConfigError as error:
            refused.append(str(error))
    assert refused == []


def test_a_missing_package_names_the_extra_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # Python's own way to say: cannot be imported
    with pytest.raises(ConfigError) as refused:
        require_extra("export", "--format onnx")
    assert str(refused.value) == (
        "--format onnx: the package onnxruntime is missing; install with: pip install 'mtdnn_ds[export]'"
    )

    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ConfigError, match="the packages onnx, onnxruntime are missing"):
        require_extra("export", "--format onnx")


@pytest.mark.parametrize("package", EXTRAS["serve"])
def test_the_service_cannot_be_imported_without_its_extra(
    package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, "mtdnn_ds.predict.service", raising=False)
    with pytest.raises(
        ConfigError, match=rf"serve: the package {package} is missing; .*pip install 'mtdnn_ds\[serve\]'"
    ):
        importlib.import_module("mtdnn_ds.predict.service")
