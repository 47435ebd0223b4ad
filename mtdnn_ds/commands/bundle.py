"""`bundle`: a folder with all that a machine without a network needs to run mtdnn_ds.

Prints what mtdnn_ds/bundle made; no work here.
"""

from __future__ import annotations


def run(
    *,
    installed: str,
    output: str,
    python: str | None,
    platform: str | None,
    include: str | None,
    max_size: str | None,
    extras: str | None,
) -> int:
    """Make the folder and say what is in it; returns the exit code. Raises ConfigError."""
    from mtdnn_ds.bundle.contents import mebibytes
    from mtdnn_ds.bundle.make import SCRIPT, make_bundle

    bundle = make_bundle(
        installed=installed,
        output=output,
        python=python,
        platform=platform,
        include=include,
        max_size=max_size,
        extras=extras,
    )

    closure = bundle.closure
    for name, version in closure.replaced.items():
        print(
            f"{name}: the node has {version}, which does not fit; {closure.wheels[name].version} comes "
            "along, and all that runs from the bundle uses it"
        )
    names = ", ".join(f"{name} {wheel.version}" for name, wheel in sorted(closure.wheels.items()))
    print(f"{len(closure.wheels)} wheels: {names or 'the node has everything'}")
    print(
        f"{bundle.path}: {mebibytes(bundle.num_bytes)}, {bundle.num_project_files} files of the checkout, "
        f"{bundle.num_included_files} included"
    )
    print(f"on the node: ./{bundle.path.name}/{SCRIPT} [RECIPE.yaml]")
    return 0
