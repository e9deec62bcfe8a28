"""What the forwards of well-known devices take, in seconds."""

from dataclasses import dataclass

from specedge_p2p.lm.emulated import load_profile


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


def _engine(name: str) -> EngineCosts:
    profile = load_profile(name)
    milliseconds = (profile.step_ms, profile.row_ms, profile.level_ms, profile.level_row_ms)
    return EngineCosts(*(value / 1000 for value in milliseconds))


def _node(name: str) -> NodeCosts:
    profile = load_profile(name)
    return NodeCosts(profile.level_ms / 1000, profile.level_row_ms / 1000)


ENGINES = {name: _engine(name) for name in ("h200-14b", "a100-32b", "big-70b", "paper-32b")}
NODES = {
    name: _node(name)
    for name in ("rtx4090-1.7b", "rtx4090-4b", "large-12ms", "slow-15ms", "paper-node")
}
