"""The average of what trains, against counting it at every step."""

import pytest

import rankwise as rw
from contract.methods import ROWS
from contract.models import ENCODER
from contract.runs import STEPS, adamw, step
from rankwise.adapter import Method
from rankwise.train.trained import head_parameters, trainable_average

METHODS = [row.method for row in ROWS] + [
    rw.AdaLoRA(rank=4, target_rank=2, warmup=2, cooldown=4, every=2, compact_at_end_of_budget=True),
    rw.HoulsbyAdapter(size=4),
    rw.FullFineTuning(),
]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_the_average_is_that_of_a_count_at_every_step(method: Method) -> None:
    adaptation = rw.adapt(ENCODER.build(), method)
    adaptation.model.train()
    optimizer, counts = adamw(adaptation), []
    with adaptation.attached(optimizer, total_steps=STEPS):
        for _ in range(STEPS):
            counts.append(adaptation.count())
            step(adaptation, optimizer, ENCODER.batch())
    adaptation.history.flush()
    assert trainable_average(adaptation, STEPS) == pytest.approx(sum(counts) / STEPS)
    assert trainable_average(adaptation, STEPS) > head_parameters(adaptation)


def test_heads_are_what_trains_beside_the_method() -> None:
    classifier = sum(p.numel() for n, p in ENCODER.build().named_parameters() if n.startswith("classifier."))
    for method in (rw.LoRA(), rw.BitFit(), rw.HoulsbyAdapter(size=4)):
        adaptation = rw.adapt(ENCODER.build(), method)
        assert head_parameters(adaptation) == classifier + _pooler(adaptation), method.name


def _pooler(adaptation: rw.Adaptation) -> int:
    return sum(p.numel() for n, p in adaptation.trained.items() if ".pooler." in n and n not in adaptation.tuned)
