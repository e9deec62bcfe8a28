"""How the demo looks: tokens coloured by who guessed them, and the table of credits."""

import math
from collections.abc import Mapping, Sequence

from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from specedge_p2p.demo.client import Batch, Generation
from specedge_p2p.lm.text import Tokenizer
from specedge_p2p.plural import counted

NODE_COLOURS = ("green", "cyan", "magenta", "yellow", "blue", "bright_red")
PEER_ID_LENGTH = 52
NGRAM_COLOUR = "bright_black"
LIVE_COLUMN_WIDTH = 60
BORDER_LINES, BORDER_COLUMNS = 2, 4
"""What a panel takes of the room beside its text."""


class Palette:
    """Gives each node its colour in the order in which nodes show up."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._colours: dict[str, str] = {}

    def style(self, guessed_by: str) -> str:
        if not guessed_by:
            return "bold"
        if guessed_by == "ngram":
            return NGRAM_COLOUR
        order = len(self._colours) % len(NODE_COLOURS)
        return self._colours.setdefault(guessed_by, NODE_COLOURS[order])

    def legend(self) -> Text:
        text = Text.assemble(("target", "bold"), "  ", ("n-gram", NGRAM_COLOUR))
        for peer_id, colour in self._colours.items():
            text.append("  ")
            text.append(f"node {short(peer_id)}", colour)
        return text

    def generation(self, generation: Generation) -> Text:
        """The prompt dim, then each run of tokens in the colour of its guesser."""
        text = Text(generation.prompt, "dim")
        for guessed_by, token_ids in _runs(generation):
            text.append(self._tokenizer.decode(token_ids), self.style(guessed_by))
        return text

    def batch(self, batch: Batch) -> RenderableType:
        panels = [Panel(self.generation(generation)) for generation in batch.generations]
        return Group(Columns(panels, equal=True, expand=True), self.legend())

    def live_batch(self, batch: Batch, console: Console) -> RenderableType:
        """The ends of the answers, in a picture that is lower than the screen.

        A terminal cannot take back what has left its upper edge: a higher picture would stay there
        beside the next one.
        """
        answers = [self.generation(generation) for generation in batch.generations]
        legend = self.legend()
        num_columns = max(1, min(len(answers), console.width // LIVE_COLUMN_WIDTH))
        width = console.width // num_columns
        num_legend_lines = len(legend.wrap(console, console.width))
        room = console.height - 1 - num_legend_lines  # the cursor's line stays free
        num_lines = room // math.ceil(len(answers) / num_columns) - BORDER_LINES
        if num_lines < 1:
            return Text(counted(batch.num_tokens, "token"))
        grid = Table.grid()
        panels = [
            Panel(_tail(answer, console, width - BORDER_COLUMNS, num_lines), width=width)
            for answer in answers
        ]
        for first in range(0, len(panels), num_columns):
            grid.add_row(*panels[first : first + num_columns])
        return Group(grid, legend)


def short(peer_id: str) -> str:
    """The part of a peer id that tells two apart."""
    return "…" + peer_id[-8:]


def summary(console: Console, batch: Batch, baseline: Batch) -> None:
    ratio = batch.tokens_per_s / baseline.tokens_per_s
    console.print(
        f"{counted(batch.num_tokens, 'token')} at {batch.tokens_per_s:.0f} tok/s; without nodes "
        f"{baseline.tokens_per_s:.0f} tok/s: {ratio:.2f}x"
    )
    for name, value in (
        ("acceptance length", batch.acceptance_length),
        ("acceptance length where a node had drafted", batch.acceptance_length_drafted),
    ):
        if value is not None:
            console.print(f"{name} {value:.2f}")


def credit_table(accepted: Mapping[str, int], micro_credits: Mapping[str, int]) -> Table:
    table = Table(title="credits in the ledger")
    table.add_column("accepted", justify="right")
    table.add_column("credits", justify="right")
    table.add_column("node", no_wrap=True, min_width=PEER_ID_LENGTH)
    for peer_id in accepted:
        credit = micro_credits.get(peer_id, 0) / 1_000_000
        table.add_row(str(accepted[peer_id]), f"{credit:g}", peer_id)
    return table


def _tail(text: Text, console: Console, width: int, num_lines: int) -> Text:
    return Text("\n").join(text.wrap(console, width)[-num_lines:])


def _runs(generation: Generation) -> Sequence[tuple[str, list[int]]]:
    runs: list[tuple[str, list[int]]] = []
    for token_id, guessed_by in zip(generation.token_ids, generation.guessed_by, strict=True):
        if runs and runs[-1][0] == guessed_by:
            runs[-1][1].append(token_id)
        else:
            runs.append((guessed_by, [token_id]))
    return runs
