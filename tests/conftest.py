"""Hypothesis profiles: `dev` at home, `ci` where CI is set, `soak` in `make soak`. And Triton."""

import os
from pathlib import Path

from hypothesis import HealthCheck, settings

_SLOW_MACHINE = [HealthCheck.too_slow]

settings.register_profile("dev", max_examples=50, deadline=None)
settings.register_profile(
    "ci", max_examples=50, deadline=None, derandomize=True, suppress_health_check=_SLOW_MACHINE
)
settings.register_profile(
    "soak", max_examples=500, deadline=None, suppress_health_check=_SLOW_MACHINE
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "dev"))

if not Path("/dev/nvidiactl").exists():
    # Before anything imports triton: its own library is compiled or interpreted from then on.
    os.environ.setdefault("TRITON_INTERPRET", "1")
