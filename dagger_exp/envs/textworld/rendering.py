"""What does the agent read? The state of a game as text: `short` from facts, `prose` as Inform 7 prints it.

`short` is text for a tiny student with a word-level tokenizer: lower case, punctuation split off, so that
splitting at whitespace gives exactly the words of the world's vocabulary:

    kitchen . exits north , east . you see closed chest , table . table holds old key . you carry coin .

It tells what TextWorld's own room descriptions tell, no more: what lies in a closed chest is not mentioned.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

DIRECTIONS = ("north", "east", "south", "west")
DOOR_STATES = ("open", "closed", "locked")
PLAYER, INVENTORY = "P", "I"
SHORT_WORDS = (*DIRECTIONS, *DOOR_STATES, *"exits you see carry holds won lost can that does nothing . , :".split())
"""Every word that the short rendering adds to the names and commands of a game."""

Relations = set[tuple[str, ...]]


def words(text: str) -> list[str]:
    """Return the words of a text: lower case, sentence marks split off, all other punctuation dropped."""
    return re.findall(r"\w+(?:['-]\w+)*|[.,:!?]", text.lower())


class Rendering(Protocol):
    """How text looks; `state` is a TextWorld game state with the infos that `env.py` requests."""

    def text(self, text: str) -> str:
        """Return a text that the game wrote (an objective, a command) in this rendering."""
        ...

    def observation(self, state: Mapping[str, Any]) -> str:
        """Return what the last command led to."""
        ...

    def refusal(self, state: Mapping[str, Any]) -> str:
        """Return the answer to a command that was not understood or is not possible now."""
        ...

    def choices(self, commands: Sequence[str]) -> str:
        """Return the list of the commands that are possible now."""
        ...


class Short:
    """A few words per room, derived from the facts of the state."""

    def text(self, text: str) -> str:
        return " ".join(words(text))

    def observation(self, state: Mapping[str, Any]) -> str:
        sentences = [*describe(state["facts"]), *(f"you {end}" for end in ("won", "lost") if state[end])]
        return " . ".join([*map(self.text, sentences), ""]).rstrip()

    def refusal(self, state: Mapping[str, Any]) -> str:
        return f"that does nothing . {self.observation(state)}"

    def choices(self, commands: Sequence[str]) -> str:
        return f" you can : {' , '.join(commands)} ."


class Prose:
    """The feedback of the compiled game without its banner, its prompt and its status line."""

    def text(self, text: str) -> str:
        return text.strip()

    def observation(self, state: Mapping[str, Any]) -> str:
        text = re.split(r"\n>|\nWould you like", state["feedback"])[0]
        room = text.find("-= ")
        banner_ends = room if "$$$" in text and room >= 0 else 0
        return re.sub(r"\n{3,}", "\n\n", text[banner_ends:]).strip()

    def refusal(self, state: Mapping[str, Any]) -> str:
        return "That does nothing."

    def choices(self, commands: Sequence[str]) -> str:
        return f"\n\nYou can: {', '.join(commands)}."


RENDERINGS: Mapping[str, Rendering] = {"short": Short(), "prose": Prose()}


def describe(facts: Iterable[Any]) -> list[str]:
    """Return the sentences on where the player is, what is visible there and what the player carries.

    `facts` are TextWorld propositions whose arguments bear the names that the agent uses in commands.
    """
    relations = {(fact.name, *(argument.name for argument in fact.arguments)) for fact in facts}
    room = next(place for place in _seconds(relations, "at", PLAYER))
    seen = sorted(thing for thing in _firsts(relations, "at", room) if thing != PLAYER)
    sentences = [room, _exits(relations, room), *_doors(relations, room)]
    sentences += _list("you see", [_with_state(relations, thing) for thing in seen])
    for thing in seen:
        sentences += _list(f"{thing} holds", _contents(relations, thing))
    return [*sentences, *_list("you carry", _firsts(relations, "in", INVENTORY))]


def _firsts(relations: Relations, name: str, second: str) -> list[str]:
    return sorted(fact[1] for fact in relations if fact[0] == name and fact[2:] == (second,))


def _seconds(relations: Relations, name: str, first: str) -> list[str]:
    return sorted(fact[2] for fact in relations if fact[:2] == (name, first))


def _list(start: str, things: Sequence[str]) -> list[str]:
    return [f"{start} {' , '.join(things)}"] if things else []


def _exits(relations: Relations, room: str) -> str:
    free = [
        direction
        for direction in DIRECTIONS
        if any(("free", room, place) in relations for place in _firsts(relations, f"{direction}_of", room))
    ]
    return f"exits {' , '.join(free)}".rstrip()


def _doors(relations: Relations, room: str) -> list[str]:
    return [
        f"{direction} {_with_state(relations, fact[2])}"
        for direction in DIRECTIONS
        for place in _firsts(relations, f"{direction}_of", room)
        for fact in sorted(relations)
        if fact[0] == "link" and fact[1] == room and fact[3] == place
    ]


def _with_state(relations: Relations, thing: str) -> str:
    states = [state for state in DOOR_STATES if (state, thing) in relations]
    return " ".join([*states, thing])


def _contents(relations: Relations, holder: str) -> list[str]:
    inside = _firsts(relations, "in", holder) if ("open", holder) in relations else []
    return [*inside, *_firsts(relations, "on", holder)]
