"""Words that what is told to a user needs in many places."""


def counted(number: int, noun: str) -> str:
    """ "1 prompt", "2 prompts", "1,024 prompts"."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
