"""Batches of rows of one length: each row once, in another order each epoch, and in the same when asked again."""

from rankwise.train.by_length import ByLength

LENGTHS = [3 + (7 * row) % 61 for row in range(400)]


def padding(order: list[int], batch: int) -> int:
    lengths = [LENGTHS[row] for row in order]
    batches = [lengths[start : start + batch] for start in range(0, len(lengths), batch)]
    return sum(max(own) * len(own) - sum(own) for own in batches)


def test_every_epoch_is_a_permutation_of_its_own_and_of_the_seed_s():
    orders = []
    for seed, epoch in ((0, 0), (0, 1), (5, 0)):
        sampler = ByLength(LENGTHS, 8, seed)
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
        assert sorted(orders[-1]) == list(range(400)) and len(sampler) == 400
        assert list(sampler) == orders[-1]
    assert orders[0] != orders[1] != orders[2] != orders[0]


def test_little_of_a_batch_is_padding():
    grouped, plain = list(ByLength(LENGTHS, 8, 0)), list(range(400))
    assert padding(grouped, 8) < padding(plain, 8) / 4
    assert grouped != sorted(plain, key=LENGTHS.__getitem__)
