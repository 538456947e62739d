"""The batches of a round: their order, resumption, sharing, and what is never in them."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from collections.abc import Callable, Iterable

import pytest

from dagger_exp.data.batches import Batch
from dagger_exp.data.datamodule import RoundDataModule
from dagger_exp.data.loader import RoundLoader
from dagger_exp.data.selection import EpisodeFilter
from dagger_exp.errors import ConfigError, DataError
from dagger_exp.types import Episode, StopReason

MakeEpisode = Callable[..., Episode]
MakeData = Callable[..., RoundDataModule]
Rounds = list[list[Episode]]


@pytest.fixture
def rounds(make_episode: MakeEpisode) -> Rounds:
    """Give 7 and 4 episodes of 1 to 3 turns, whose tokens tell which episode they are of."""

    def make(round_index: int, index: int) -> Episode:
        token = 100 * (round_index + 1) + index
        triples = [([token, t], [token, 50 + t], [token, 60]) for t in range(1 + index % 3)]
        return make_episode(triples, round_index=round_index, episode_index=index)

    return [[make(0, index) for index in range(7)], [make(1, index) for index in range(4)]]


def order(loader: RoundLoader) -> list[int]:
    return [index for step in range(len(loader)) for index in loader.episode_indices(step)]


def contents(batches: Iterable[Batch]) -> list[list[list[int]]]:
    """Return the rows of tokens of each batch, all its micro-batches together."""
    return [[row for m in batch.micro_batches for row in m.input_ids.tolist()] for batch in batches]


def test_every_kept_episode_comes_once_per_permutation(make_data: MakeData, rounds: Rounds) -> None:
    taken = order(make_data(rounds, steps=[14, 14]).loader(0))
    permutations = [taken[begin : begin + 7] for begin in range(0, 42, 7)]
    assert all(sorted(permutation) == [*range(7)] for permutation in permutations)
    assert len(set(map(tuple, permutations))) > 1


def test_a_loader_that_is_done_takes_its_trees_and_open_files_with_it(make_data: MakeData, rounds: Rounds) -> None:
    gc.disable()  # nothing that it holds makes the collector hurry
    try:
        loader = make_data(rounds, steps=[3, 3]).loader(0)
        assert len(list(loader)) == 3
        gone = weakref.ref(loader)
        del loader
        assert gone() is None
    finally:
        gc.enable()


def test_the_order_is_a_pure_function_of_seed_round_and_step(make_data: MakeData, rounds: Rounds) -> None:
    equal = {"rounds": [rounds[0][:4], rounds[1]], "steps": [20, 20], "aggregation": "latest"}
    expected = order(make_data(**equal).loader(1))
    again = make_data(**equal).loader(1)
    backwards = [again.episode_indices(step) for step in reversed(range(20))]
    assert [index for indices in reversed(backwards) for index in indices] == expected
    assert order(make_data(**equal).loader(0)) != expected
    assert order(make_data(**equal, seed=1).loader(1)) != expected


def test_passes_of_a_round_go_on_where_the_last_one_ended(make_data: MakeData, rounds: Rounds) -> None:
    data = make_data(rounds, epochs_per_round=3)
    passes = [order(data.loader(0, epoch)) for epoch in range(3)]
    assert [len(taken) for taken in passes] == [9, 9, 9]
    joined = [index for taken in passes for index in taken]
    assert [sorted(joined[begin : begin + 7]) for begin in (0, 7, 14)] == [[*range(7)]] * 3
    assert joined == order(make_data(rounds, steps=[9, 9]).loader(0))


@pytest.mark.parametrize("num_taken", [0, 1, 3, 4])
def test_a_resumed_loader_repeats_and_skips_nothing(make_data: MakeData, rounds: Rounds, num_taken: int) -> None:
    data = make_data(rounds, steps=[5, 5])
    expected = contents(data.loader(0))
    killed, resumed = data.loader(0), data.loader(0)
    taken = contents(batch for batch, _ in zip(killed, range(num_taken), strict=False))
    resumed.load_state_dict(killed.state_dict())
    # `zip` asked the killed one for a batch more than it took.
    assert len(expected) == 5
    assert taken == expected[:num_taken]
    assert contents(resumed) == expected[killed.state_dict()["num_taken"] :]


def test_a_loader_begins_anew_after_a_whole_pass(make_data: MakeData, rounds: Rounds) -> None:
    loader = make_data(rounds, steps=[5, 5]).loader(0)
    assert contents(loader) == contents(loader)


def test_two_processes_share_every_batch(make_data: MakeData, rounds: Rounds) -> None:
    """Without overlap, with nothing left out, and with as many backward passes, though 7 = 4 + 3 episodes."""
    data = make_data(rounds, steps=[4, 4], batch_size=7, max_tokens=20)
    ranks = [data.loader(0, rank=rank, num_processes=2) for rank in range(2)]
    for whole, first, second in zip(data.loader(0), *ranks, strict=True):
        assert len(first.micro_batches) == len(second.micro_batches)
        assert first.total_weight == second.total_weight == whole.total_weight
        assert not trained_tokens(first).keys() & trained_tokens(second).keys()
        assert trained_tokens(first) + trained_tokens(second) == trained_tokens(whole)


def trained_tokens(batch: Batch) -> Counter[int]:
    """Count the tokens with a weight that name their episode."""
    pairs = [pair for m in batch.micro_batches for pair in zip(m.target_ids, m.target_weights, strict=True)]
    return Counter(int(token) for token, weight in pairs if weight and token >= 100)


def test_every_label_of_the_episodes_is_in_the_batch(make_data: MakeData, rounds: Rounds) -> None:
    (batch,) = make_data(rounds, steps=[1, 1], batch_size=7, max_tree_tokens=6).loader(0)
    assert trained_tokens(batch) == Counter({100 + i: 1 + i % 3 for i in range(7)})
    assert batch.total_weight == sum(2 * (1 + i % 3) for i in range(7))


@pytest.mark.parametrize(
    ("aggregation", "expected"), [("union", [*range(11)]), ("latest", [*range(4)]), ("window", [*range(11)])]
)
def test_aggregations(make_data: MakeData, rounds: Rounds, aggregation: str, expected: list[int]) -> None:
    data = make_data(rounds, steps=[1, 1], batch_size=len(expected), aggregation=aggregation, window=2)
    loader = data.loader(1)
    assert sorted(order(loader)) == expected
    tokens = trained_tokens(loader.batch(0))
    assert {token // 100 for token in tokens} == ({2} if aggregation == "latest" else {1, 2})


def test_only_kept_episodes_with_a_label_are_trained_on(make_data: MakeData, make_episode: MakeEpisode) -> None:
    """A warm-up of solved ones is about the round that an episode was collected in, not the one that is trained."""
    reasons = [StopReason.SOLVED, StopReason.UNSOLVED, StopReason.ENGINE, StopReason.SOLVED]
    labels = [[2], [2], [2], None]

    def episodes(round_index: int) -> list[Episode]:
        return [
            make_episode([([5], [6], labels[i])], round_index=round_index, episode_index=i, stop_reason=reasons[i])
            for i in range(4)
        ]

    data = make_data([episodes(0), episodes(1)], steps=[1, 9], keeps=EpisodeFilter(keep="warmup_solved"))
    assert set(order(data.loader(1))) == {0, 4, 5}


def test_a_round_without_a_label_says_what_to_change(make_data: MakeData, make_episode: MakeEpisode) -> None:
    failed = make_episode([([5], [6], [7])], stop_reason=StopReason.SANDBOX)
    unlabelled = make_episode([([5], [6], None)], episode_index=1)
    with pytest.raises(DataError, match=r"round 0 has no trainable token.*filter\.keep or choose another labeler"):
        make_data([[failed, unlabelled]]).loader(0)


def test_a_batch_of_empty_labels_is_an_error(make_data: MakeData, make_episode: MakeEpisode) -> None:
    data = make_data([[make_episode([([5], [6], [])])]], batch_size=1)
    with pytest.raises(DataError, match="a batch of 1 episodes has no trainable token"):
        list(data.loader(0))


def test_what_cannot_be_shared_or_counted_is_refused(make_data: MakeData, rounds: Rounds) -> None:
    with pytest.raises(DataError, match="batch_size=3 leaves some of 4 processes without work"):
        make_data(rounds).loader(0, num_processes=4)
    with pytest.raises(ConfigError, match=r"rounds\.steps or rounds\.epochs_per_round, not both"):
        make_data(rounds, steps=[1], epochs_per_round=2)
