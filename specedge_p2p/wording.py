"""Small things about words for people."""


def counted(num: int, noun: str) -> str:
    """`1 token`, `2 tokens`: a number and its noun."""
    return f"{num} {noun}" if num == 1 else f"{num} {noun}s"
