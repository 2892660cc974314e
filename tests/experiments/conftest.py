"""What the tests of experiments share: each program is compiled once for all of them and the commands they start."""

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache


@pytest.fixture(scope="session", autouse=True)
def _compiled_programs(tmp_path_factory):
    options = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.2,
    }
    before = {name: jax.config.values[name] for name in options}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in options.items():
            patch.setenv(name.upper(), str(value))  # for commands
            jax.config.update(name, value)
        compilation_cache.reset_cache()  # it has looked for a folder already
        yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
