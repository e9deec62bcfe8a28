"""What can be measured: networks to start, and ways to serve on them. Names are paths."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

PLAIN = "plain"
NGRAM = "ngram"
AUTO = "auto"
AUTO_NGRAM = "auto+ngram"


@dataclass(frozen=True, slots=True)
class NodeGroup:
    """Equal volunteer processes.

    Args:
        profile: what their levels are padded to, for all draft models or for each by its name; ""
            for this machine's own speed.
        draft_models: to take, or to choose from.
        round_trip_ms: added to the link, before stretching.
        arguments: further arguments of `specedge-node join`.
    """

    count: int
    profile: str = "rtx4090-1.7b"
    draft_models: tuple[str, ...] = ("demo-draft",)
    round_trip_ms: float = 15.0
    arguments: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class NetworkSpec:
    """What must be started for a serving; equal ones share their processes.

    Args:
        device: profile of the engine, "" for this machine's own speed.
        stretch: real seconds per emulated second.
        serve: further arguments of `specedge-coordinator serve`.
    """

    device: str
    stretch: float
    serve: tuple[str, ...] = ()
    nodes: tuple[NodeGroup, ...] = ()

    @property
    def num_nodes(self) -> int:
        return sum(group.count for group in self.nodes)


@dataclass(frozen=True, slots=True)
class Serving:
    """One mode under one load: a row of the table.

    Args:
        num_turns: how often all jobs are served, with other seeds each time.
    """

    name: str
    network: NetworkSpec
    num_sessions: int
    temperature: float
    num_turns: int = 1

    def stretched(self, factor: float) -> "Serving":
        """The same, slower."""
        network = replace(self.network, stretch=self.network.stretch * factor)
        return replace(self, network=network)


@dataclass(frozen=True, slots=True)
class Situation:
    """An engine and a load, in which modes are compared.

    Args:
        trees: best two fixed trees of the engine's own draft model (depth x width), of those that
            the simulator finds; the better one, as it was measured, comes first.
        trees_with_ngram: likewise, with n-gram guesses.
    """

    device: str
    temperature: float
    num_sessions: int
    trees: tuple[str, ...]
    trees_with_ngram: tuple[str, ...]
    alone_stretch: float
    """Hides this machine's own work when no node takes part: what the engine does between two
    forwards is not padded, so it must be little of a step here, as it is where volunteers take part
    and time is stretched further."""
    num_turns: int = 1
    """See Serving; more where one would be over in seconds."""

    @property
    def name(self) -> str:
        return f"{self.device}/T{self.temperature:g}/s{self.num_sessions}"

    def alone(self) -> list[Serving]:
        """All modes without volunteers."""
        servings = [
            self._alone(PLAIN, self.alone_stretch, "--no-ngram"),
            self._alone(NGRAM, 1.5 * self.alone_stretch),
            self._alone(AUTO_NGRAM, 2 * self.alone_stretch, *_draft("auto")),
        ]
        servings += [self.tree(tree) for tree in self.trees]
        servings += [
            self._alone(f"{tree}+ngram", 2 * self.alone_stretch, *_draft(tree))
            for tree in self.trees_with_ngram
        ]
        return servings

    def without_ngram(self) -> tuple[str, ...]:
        """Names of the modes without volunteers and without n-gram guesses."""
        return tuple(f"{self.name}/{mode}" for mode in (PLAIN, *self.trees))

    def with_ngram(self) -> tuple[str, ...]:
        """Names of all modes without volunteers."""
        modes = (NGRAM, AUTO_NGRAM, *(f"{tree}+ngram" for tree in self.trees_with_ngram))
        return (*self.without_ngram(), *(f"{self.name}/{mode}" for mode in modes))

    def second_trees(self) -> tuple[str, ...]:
        """Names of the modes with fixed trees but for the best one, and the best with n-gram."""
        others = (*self.trees[1:], *(f"{tree}+ngram" for tree in self.trees_with_ngram[1:]))
        return tuple(f"{self.name}/{mode}" for mode in others)

    def tree(self, tree: str) -> Serving:
        """A fixed tree of the engine's own draft model, without n-gram guesses."""
        return self._alone(tree, 2 * self.alone_stretch, "--no-ngram", *_draft(tree))

    def ours(
        self,
        mode: str,
        nodes: Sequence[NodeGroup],
        *serve: str,
        stretch: float,
        num_sessions: int | None = None,
    ) -> Serving:
        """Volunteers take part; the engine drafts by itself where that pays."""
        return Serving(
            f"{self.name}/{mode}",
            NetworkSpec(self.device, stretch, (*_draft("auto"), *serve), tuple(nodes)),
            num_sessions or self.num_sessions,
            self.temperature,
            self.num_turns,
        )

    def lockstep(
        self, shape: str, nodes: Sequence[NodeGroup], *serve: str, stretch: float
    ) -> Serving:
        """Volunteers in lock-step rounds; shape as in `serve --lockstep`."""
        arguments = ("--lockstep", shape, "--no-ngram", *serve)
        network = NetworkSpec(self.device, stretch, arguments, tuple(nodes))
        name = f"{self.name}/lockstep-{shape}"
        return Serving(name, network, self.num_sessions, self.temperature, self.num_turns)

    def _alone(self, mode: str, stretch: float, *serve: str) -> Serving:
        # Where nothing is emulated, time is what it is.
        network = NetworkSpec(self.device, stretch if self.device else 1.0, serve)
        name = f"{self.name}/{mode}"
        return Serving(name, network, self.num_sessions, self.temperature, self.num_turns)


def _draft(tree: str) -> tuple[str, ...]:
    return ("--engine-draft", "demo-draft", "--engine-tree", tree)
