"""What is told of one thing, of none and of several."""

from mmspec.words import counted


def test_one_has_no_s() -> None:
    told = [counted(number, "prompt") for number in (0, 1, 2, 1024)]
    assert told == ["0 prompts", "1 prompt", "2 prompts", "1,024 prompts"]
