"""The one base of all errors that a person can mend."""


class ClearError(Exception):
    """Its text is one line that says what is wrong and what to do; commands end with code 2."""
