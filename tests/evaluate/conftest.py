from intrinsic_lab.tests.training.conftest import tiny_base  # noqa: F401
