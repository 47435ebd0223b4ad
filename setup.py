"""Which packages a wheel holds; everything else about it is in pyproject.toml.

recipes/, ds_configs/ and launchers/ stay where they are in the project and become folders of
mtdnn_ds/shipped (mtdnn_ds/config/shipped.py finds them in both places). pyproject.toml cannot say that beside
packages that are found by themselves.
"""

from setuptools import find_packages, setup

SHIPPED = {f"mtdnn_ds.shipped.{folder}": folder for folder in ("recipes", "ds_configs", "launchers")}

setup(
    packages=[*find_packages(include=["mtdnn_ds", "mtdnn_ds.*"]), *SHIPPED],
    package_dir=SHIPPED,
    package_data={
        "mtdnn_ds": ["py.typed", "*/*.html", "*/*.css", "*/*.js"],
        **{package: ["*.*", "*/*.*", "*/*/*.*"] for package in SHIPPED},
    },
    exclude_package_data={package: ["*.pyc", "*/*.pyc"] for package in SHIPPED},
)
