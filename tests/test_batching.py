"""長さの近い束: 全部の例を一度ずつ、種と周回だけで決まる順に、詰め物を減らして並べる。"""

import random

import pytest

from lib.batching import SimilarLengths


def padded(order, lengths, batch):
    """束ごとに最長へそろえたときのトークン数。"""
    parts = [order[i : i + batch] for i in range(0, len(order), batch)]
    return sum(max(lengths[k] for k in part) * len(part) for part in parts)


@pytest.mark.parametrize("count", [1, 7, 8, 64, 112, 113, 500])
def test_every_example_comes_once_and_the_order_depends_on_seed_and_epoch(count):
    lengths = [random.Random(k).randrange(40, 160) for k in range(count)]
    orders = {}
    for seed in (0, 1):
        for epoch in (0, 1):
            sampler = SimilarLengths(lengths, 8, seed)
            sampler.set_epoch(epoch)
            orders[seed, epoch] = list(sampler)
            assert sorted(orders[seed, epoch]) == list(range(count)) and len(sampler) == count
            assert list(sampler) == orders[seed, epoch]
    if count > 8:
        assert len({tuple(order) for order in orders.values()}) == 4


def test_it_pads_less_than_the_grouping_of_transformers():
    from transformers.trainer_pt_utils import get_length_grouped_indices

    lengths = [random.Random(k).randrange(40, 160) for k in range(112)]
    ours = padded(list(SimilarLengths(lengths, 8)), lengths, 8)
    theirs = padded(get_length_grouped_indices(lengths, 8), lengths, 8)
    assert ours < theirs and ours < 1.12 * sum(lengths)
