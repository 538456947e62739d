"""Which runs may be averaged, and what is each average called? Runs of the same settings but for the seed are a group.

Runs that were evaluated under other conditions stand in another comparison: their figures mean something else.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from dagger_exp.analysis.load import Run
from dagger_exp.analysis.settings import Settings, settings_of

CONDITIONS = (
    "env",
    "evaluation.tasks",
    "evaluation.seed",
    "evaluation.temperature",
    "rollout.max_new_tokens",
    "student.max_context_tokens",
)
"""Keys that decide what a success rate is a rate of."""
TARGET = "._target_"
FEW_SEEDS = 5
"""Below so many an interval over seeds says little."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Runs that differ in their seed only.

    Attributes:
        label: what sets the group apart from the others of its comparison.
        runs: those that finished with a success rate, by seed.
        left_out: the others; they are in no final figure.
        settings: what all of them have in common.
    """

    label: str
    runs: tuple[Run, ...]
    left_out: tuple[Run, ...]
    settings: Settings

    @property
    def shown(self) -> tuple[Run, ...]:
        """The runs that curves are made of: while none has finished, those that go on."""
        return self.runs or self.left_out

    @property
    def members(self) -> tuple[Run, ...]:
        """All runs."""
        return self.runs + self.left_out

    @property
    def num_runs(self) -> str:
        """How many runs the final figures are of: `6`, or `4 of 6`."""
        return f"{len(self.runs)} of {len(self.members)}" if self.left_out else str(len(self.runs))


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Groups that were evaluated under the same conditions, in the order in which they were read.

    Attributes:
        conditions: what sets it apart from the other comparisons; empty where it is the only one.
        groups: at least one.
    """

    conditions: str
    groups: tuple[Group, ...]

    @property
    def differing(self) -> list[str]:
        """The keys in which the groups differ, `schedule` where that is another component."""
        return _telling_keys([group.settings for group in self.groups])


def compare(runs: Iterable[Run]) -> tuple[list[Comparison], list[str]]:
    """Return the comparisons, the one of most runs first, and a sentence for each run that is left out."""
    by_conditions: defaultdict[Hashable, defaultdict[Hashable, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        settings = _settings(run)
        by_conditions[frozenset(_conditions(settings).items())][frozenset(settings.items())].append(run)
    parts = sorted(by_conditions.values(), key=lambda groups: -sum(map(len, groups.values())))
    names = labels([_conditions(_settings(next(iter(groups.values()))[0])) for groups in parts])
    comparisons, complaints = [], []
    for name, groups in zip(names, parts, strict=True):
        unique = [_once_per_seed(group, complaints) for group in groups.values()]
        comparisons.append(Comparison(conditions=name, groups=_labelled(unique)))
        complaints += [_why_left_out(run) for group in comparisons[-1].groups for run in group.left_out]
    return comparisons, complaints


def notes(comparison: Comparison, baseline: Group) -> list[str]:
    """Return a sentence for each reason to trust the figures of a comparison less."""
    groups = [group for group in comparison.groups if group.runs]
    apart = [group.label for group in groups if baseline.runs and not _seeds(group) & _seeds(baseline)]
    said = [f"{label} and {baseline.label} share no seed: their difference is unpaired." for label in apart]
    if mixed := _commits(groups):
        said.append(f"The runs are of {len(mixed)} commits: {'; '.join(mixed)}.")
    num_few = sum(len(group.runs) < FEW_SEEDS for group in groups)
    if num_few and sum(len(group.runs) for group in groups) > 1:
        said.append(
            f"Fewer than {FEW_SEEDS} seeds in {num_few} of {len(groups)} groups: a t-interval is wide then, and a "
            "bootstrap may be much too narrow."
        )
    return said


def _commits(groups: Sequence[Group]) -> list[str]:
    """Return each commit with its number of runs in each group; nothing where all runs are of one."""
    counts: defaultdict[str, list[str]] = defaultdict(list)
    for group in groups:
        for commit, num_runs in Counter(run.commit[:10] or "unknown" for run in group.runs).items():
            counts[commit].append(f"{group.label}: {num_runs}")
    return [f"{commit} ({', '.join(some)})" for commit, some in counts.items()] if len(counts) > 1 else []


def _seeds(group: Group) -> set[Any]:
    return {run.config.get("seed") for run in group.runs}


def _settings(run: Run) -> Settings:
    """Return the keys by which a run is grouped; 1 and 1.0 are the same value, as W&B writes either."""
    return {key: value for key, value in settings_of(run.config).items() if key != "seed" and value is not None}


def _by_choice(run: Run) -> Settings:
    """Return a run's settings with components called as they were chosen: `paper` rather than the class `Linear`."""
    settings = _settings(run)
    called = {f"{group}{TARGET}": option for group, option in run.choices.items() if option}
    return {key: called.get(key, value) for key, value in settings.items()}


def labels(members: Sequence[Settings]) -> list[str]:
    """Return the shortest text that tells each of these settings from the others; empty for a single one."""
    keys = _telling_keys(members)
    for key in reversed(keys):
        others = [other for other in keys if other != key]
        is_implied = len({_shown(member, others) for member in members}) == len(members)
        if is_implied and not any(other.startswith(f"{key}.") for other in others):  # which component is said first
            keys = others
    return [_shown(member, keys) for member in members]


def _telling_keys(members: Sequence[Settings]) -> list[str]:
    """Return the keys that differ, components before plain values; not those that a component brings with it."""
    everything = dict.fromkeys(key for member in members for key in member)
    differing = [key for key in everything if len({member.get(key) for member in members}) > 1]
    components = [key for key in differing if key.endswith(TARGET)]
    telling = [key for key in differing if not _implied(key, components, members)]
    telling.sort(key=lambda key: key not in components)
    return [key.removesuffix(TARGET) for key in telling]


def _implied(key: str, components: Sequence[str], members: Sequence[Settings]) -> bool:
    """Tell whether a key lies below a component, and is the same wherever that component is the same."""
    for component in components:
        if key != component and key.startswith(component.removesuffix(TARGET) + "."):
            pairs = {(member.get(component), member.get(key)) for member in members}
            if len(pairs) == len({chosen for chosen, _ in pairs}):
                return True
    return False


def _shown(settings: Settings, keys: Sequence[str]) -> str:
    """Return `key=value` of each key, but for those of a component that these settings do not have."""
    absent = {key for key in keys if key not in settings and any(key.startswith(f"{other}.") for other in keys)}
    return " ".join(f"{key}={_value(settings, key)}" for key in keys if key not in absent)


def _value(settings: Settings, key: str) -> str:
    """Return a value as the command line takes it; of a component its class, as `schedule=inverse_sigmoid`."""
    if key in settings:
        value = settings[key]
        return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
    if any(other.startswith(f"{key}.") for other in settings):
        name = str(settings.get(key + TARGET, "none")).rsplit(".", 1)[-1]
        return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).lstrip("_")
    return "none"


def _labelled(groups: Sequence[Sequence[Run]]) -> tuple[Group, ...]:
    """Name the groups: by the runs' own names where these tell anything, and by what differs beyond them."""
    settings = [_by_choice(runs[0]) for runs in groups]
    names = [_common_name(runs) for runs in groups]
    if len(groups) > 1 and ("" in names or len(set(names)) == 1):
        texts = labels(settings)
    else:
        texts = [""] * len(groups)
        for name in set(names):
            places = [place for place, other in enumerate(names) if other == name]
            for place, text in zip(places, labels([settings[place] for place in places]), strict=True):
                texts[place] = f"{name} {text}".strip() or "all runs"
    return tuple(map(_group, texts, groups, settings))


def _group(label: str, runs: Sequence[Run], settings: Settings) -> Group:
    left_out = tuple(run for run in runs if not _counts(run))
    return Group(label=label, runs=tuple(filter(_counts, runs)), left_out=left_out, settings=settings)


def _common_name(runs: Sequence[Run]) -> str:
    names = {str(run.choices.get("method") or run.config.get("name", "")) for run in runs}
    return names.pop() if len(names) == 1 else ""


def _once_per_seed(runs: Sequence[Run], complaints: list[str]) -> list[Run]:
    """Return one run of each seed, by seed: one that finished before others, and one with its episodes on this disk."""
    kept: dict[Any, Run] = {}
    for run in sorted(runs, key=lambda run: (not _counts(run), run.folder is None)):
        first = kept.setdefault(run.config.get("seed"), run)
        if first is not run:
            complaints.append(f"{run.place} repeats {first.place} (same settings, same seed) and is left out.")
    return [kept[seed] for seed in sorted(kept, key=lambda seed: (seed is None, seed))]


def _counts(run: Run) -> bool:
    return run.state == "finished" and bool(run.rows) and "eval/success_rate" in run.rows[-1]


def _why_left_out(run: Run) -> str:
    if run.state == "finished":
        why = "has no success rate in its last round"
        if num_failed := int(run.rows[-1].get("eval/num_failed", 0)) if run.rows else 0:
            why += f" (infrastructure failed {num_failed} of its evaluation episodes"
            why += f"; resume={run.folder} plays them again)" if run.folder else ")"
    elif run.state == "running":
        why = f"is still running ({len(run.rows)} rounds are over)"
    else:
        why = f"is {run.state}" + (f" ({run.error.rstrip('.')})" if run.error else "")
    return f"{run.place} {why} and is left out of the final figures."


def _conditions(settings: Settings) -> Settings:
    return {
        key: value
        for key, value in settings.items()
        if any(key == condition or key.startswith(f"{condition}.") for condition in CONDITIONS)
    }
