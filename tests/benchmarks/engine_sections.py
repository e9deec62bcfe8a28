"""What `python -m tests.benchmarks engine` measures, in this order; a new section is a new line."""

from tests.benchmarks.engine import Section
from tests.benchmarks.engine_forwards import level_section, verification_section
from tests.benchmarks.engine_generation import plain_section, speculation_section
from tests.benchmarks.engine_profile import host_section

SECTIONS: tuple[tuple[str, Section], ...] = (
    ("cpu/verification", verification_section),
    ("cpu/levels", level_section),
    ("cpu/host", host_section),
    ("cpu/plain", plain_section),
    ("cpu/speculation", speculation_section),
)
