"""What the tests of experiments share: commands that they start compile each program once, not once a process."""

import pytest


@pytest.fixture(scope="session", autouse=True)
def _compiled_programs(tmp_path_factory):
    """Only processes started from here on read these variables; JAX in this one has been imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.mktemp("compiled")))
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
        yield
