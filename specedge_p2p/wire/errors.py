"""What can go wrong between two peers."""


class ProtocolError(Exception):
    """The peer sent something that the protocol forbids; its link must be closed.

    Attributes:
        code: a short word, stable, fit for a metric's label.
        text: one line for people.
    """

    def __init__(self, code: str, text: str) -> None:
        super().__init__(f"{code}: {text}")
        self.code = code
        self.text = text


class IllegalSend(Exception):
    """We tried to send what the protocol forbids: a bug of ours. The link must be closed."""
