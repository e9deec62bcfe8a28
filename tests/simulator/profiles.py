"""What the forwards of well-known devices take, in seconds."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EngineCosts:
    """An engine's device: a step of its target model and a level of its own draft model."""

    step_s: float
    step_row_s: float
    level_s: float
    level_row_s: float

    def step_time_s(self, num_rows: int) -> float:
        return self.step_s + self.step_row_s * num_rows if num_rows else 0.0

    def levels_time_s(self, num_levels: int, num_rows: int) -> float:
        return self.level_s * num_levels + self.level_row_s * num_rows


@dataclass(frozen=True, slots=True)
class NodeCosts:
    """A node's device, and how often a level of it stalls for how long."""

    level_s: float = 0.006
    level_row_s: float = 0.00001
    stall_rate: float = 0.0
    stall_s: float = 0.0


ENGINES = {
    "h200-14b": EngineCosts(0.014, 0.000034, 0.0055, 0.0000066),
    "a100-32b": EngineCosts(0.040, 0.00008, 0.008, 0.000012),
    "big-70b": EngineCosts(0.094, 0.0001, 0.011, 0.00002),
    "paper-32b": EngineCosts(0.094, 0.0001, 0.011, 0.00002),
}
NODES = {
    "rtx4090-1.7b": NodeCosts(0.006, 0.00001),
    "rtx4090-4b": NodeCosts(0.009, 0.00001),
    "large-12ms": NodeCosts(0.012, 0.00002),
    "slow-15ms": NodeCosts(0.015, 0.00001),
    "paper-node": NodeCosts(0.011, 0.00002),
}
