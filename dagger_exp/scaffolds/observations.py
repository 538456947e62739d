"""How long may an observation be? Its head and its tail are kept, and what was left out is said."""

from __future__ import annotations


def cut_middle(text: str, max_chars: int | None) -> tuple[str, int]:
    """Return a text without its middle, and how many characters that was.

    Args:
        text: an observation; one that would not become shorter, since what was left out is said, stays whole.
        max_chars: kept of it, half from each end; None keeps all.
    """
    if max_chars is None or len(text) <= max_chars:
        return text, 0
    num_cut, head = len(text) - max_chars, (max_chars + 1) // 2
    cut = f"{text[:head]}\n[{num_cut} characters left out]\n{text[head + num_cut :]}"
    return (cut, num_cut) if len(cut) < len(text) else (text, 0)
