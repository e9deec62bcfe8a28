"""Counts as people say them: what a newcomer sees first is mostly one of each."""


def counted(number: float, noun: str) -> str:
    """`1 token`, `2 tokens`, `0.5 credits`; for nouns whose plural ends in a plain s."""
    figure = str(number) if isinstance(number, int) else f"{number:g}"
    return f"{figure} {noun}" if number == 1 else f"{figure} {noun}s"
