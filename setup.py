"""Lists the packages: the repository root is the package `intrinsic_lab`, its folders are the sub-packages."""

from setuptools import find_packages, setup

folders = find_packages(include=["benchmarks*", "data*", "evaluate*", "kernels*", "methods*", "nodes*", "scenes*", "tools*", "training*"])
setup(packages=["intrinsic_lab", *(f"intrinsic_lab.{folder}" for folder in folders)])
