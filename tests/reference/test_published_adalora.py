"""The oracle is itself held to the published implementation that can be installed: PEFT's AdaLoRA.

Both train the same two-layer MLP by the same AdamW from PEFT's own initial values, each with its own forward,
backward, penalty and allocation. No clipping: PEFT's penalty is in the loss, so clipping would include it.

Weights are float64 in most cases. The un-squared norm has a kink at orthonormality, and training arrives there:
then its gradient is γ times the direction of a rounding error, and two correct float32 runs part (by 1e-3 within
240 steps for γ = 0.3, by 1e-7 for γ = 0).
"""

from types import SimpleNamespace

import pytest
import torch
from peft import AdaLoraConfig, get_peft_model
from torch import nn

from reference.adalora import AdaLoRATwin, Triplets
from reference.schedules import budget_schedule
from sampled import some

STEPS, RANK, ALPHA, NAMES = 240, 6, 8, ("first", "second")


class MLP(nn.Module):
    """Returns an object with a loss, for PEFT adds its penalty to that."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(10, 16)
        self.second = nn.Linear(16, 7)

    def forward(self, x, y):
        prediction = self.second(torch.tanh(self.first(x)))
        return SimpleNamespace(loss=nn.functional.mse_loss(prediction, y))


def stream(seed, dtype):
    """Another batch for every step, from a teacher that the frozen weights do not know."""
    generator = torch.Generator().manual_seed(1000 + seed)
    teacher = torch.randn(7, 10, generator=generator)
    for _ in range(STEPS):
        x = torch.randn(12, 10, generator=generator)
        yield x.to(dtype), torch.sin(x @ teacher.T).to(dtype)


def published(seed, total, **settings):
    """PEFT's AdaLoraModel itself, not the PeftModel around it.

    Without a task type, PeftModel.forward goes past AdaLoraModel.forward and the penalty is never added.
    """
    torch.manual_seed(seed)
    config = AdaLoraConfig(
        init_r=RANK, target_r=3, lora_alpha=ALPHA, target_modules=list(NAMES), total_step=total, **settings
    )
    return get_peft_model(MLP(), config).base_model


def factors(layer):
    """PEFT's lora_B, lora_E, lora_A are P, λ, Q."""
    return Triplets(layer.lora_B["default"], layer.lora_E["default"].flatten(), layer.lora_A["default"])


@pytest.mark.parametrize(
    ("seed", "tinit", "tfinal", "every", "gamma", "weight_decay", "dtype"),
    [
        (1, 20, 60, 1, 0.5, 0.01, torch.float64),
        (3, 30, 53, 7, 0.3, 0.1, torch.float64),  # 7 does not divide T - t_f = 187
        (0, 20, 60, 1, 0.1, 0.0, torch.float32),
        *some(
            [
                (0, 20, 60, 1, 0.1, 0.0, torch.float64),
                (2, 0, 70, 4, 0.1, 0.0, torch.float64),
                (4, 10, 0, 5, 0.0, 0.0, torch.float64),  # no final phase, no penalty
                (1, 20, 60, 1, 0.1, 0.0, torch.float32),
                (3, 30, 53, 7, 0.0, 0.1, torch.float32),
            ],
            kept=(),
        ),
    ],
)
def test_twin_follows_peft(seed, tinit, tfinal, every, gamma, weight_decay, dtype):
    tolerance = {"rtol": 0, "atol": 1e-5 if dtype == torch.float64 else 1e-4}
    model = published(seed, STEPS, tinit=tinit, tfinal=tfinal, deltaT=every, orth_reg_weight=gamma).to(dtype)
    layers = [model.model.first, model.model.second]
    lora = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(lora, lr=1e-2, weight_decay=weight_decay)

    twin = AdaLoRATwin(
        [factors(layer) for layer in layers],
        total=STEPS,
        warmup=tinit,
        cooldown=tfinal,
        every=every,
        target=2 * 3,
        gamma=gamma,
        penalty="mean_norm",
        score_at="after_step",
        ties="drop",
    )
    twin_optimizer = torch.optim.AdamW(twin.parameters(), lr=1e-2, weight_decay=weight_decay)
    scale = ALPHA / (RANK + 1e-5)  # PEFT's own 1e-5
    W = [layer.get_base_layer().weight.detach() for layer in layers]
    bias = [layer.get_base_layer().bias.detach() for layer in layers]

    mask_steps = []
    for t, (x, y) in enumerate(stream(seed, dtype)):
        model(x, y).loss.backward()
        optimizer.step()
        model.update_and_allocate(t)
        optimizer.zero_grad()

        hidden = torch.tanh(x @ (W[0] + twin.delta(0, scale)).T + bias[0])
        prediction = hidden @ (W[1] + twin.delta(1, scale)).T + bias[1]
        masks = twin.train_step(t, nn.functional.mse_loss(prediction, y), twin_optimizer)

        for k, layer in enumerate(layers):
            for letter, ours, theirs in zip("PλQ", twin.matrices[k], factors(layer), strict=True):
                difference = (ours - theirs).abs().max().item()
                torch.testing.assert_close(ours, theirs, **tolerance, msg=f"{t=} {k=} {letter} {difference=}")
        if t < STEPS - tfinal and dtype == torch.float64:
            mean, uncertainty = model.rankallocator.exp_avg_ipt, model.rankallocator.exp_avg_unc
            for k, name in enumerate(NAMES):
                for ours, letter in zip(twin.element_scores(k), ("lora_B", "lora_E", "lora_A"), strict=True):
                    n = f"{name}.{letter}.default"
                    theirs = (mean[n] * uncertainty[n]).view_as(ours).float()
                    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-10, msg=f"{t=} {n}")
        if twin.masked:
            mask_steps.append(t)
            pattern = model.peft_config["default"].rank_pattern  # the last that PEFT decided
            for k, layer in enumerate(layers):
                (kept,) = (value for key, value in pattern.items() if f"{NAMES[k]}.lora_E" in key)
                assert masks[k].tolist() == kept, f"{t=} {k=}"
                assert masks[k].tolist() == (factors(layer).lam != 0).tolist(), f"{t=} {k=}"
    between = [t for t in range(tinit + 1, STEPS - tfinal) if t % every == 0]
    assert mask_steps == between + list(range(STEPS - tfinal, STEPS))


def test_budget_schedule_is_pefts():
    for total, tinit, tfinal, every in [
        (240, 20, 60, 1),
        (97, 0, 31, 5),
        (999, 333, 100, 10),
        (50, 10, 0, 3),
    ]:
        schedule = {"total": total, "warmup": tinit, "cooldown": tfinal, "every": every}
        allocator = published(0, total, tinit=tinit, tfinal=tfinal, deltaT=every).rankallocator
        for start, end in [(12, 6), (864, 576), (144, 72), (7, 1)]:
            allocator.init_bgt, allocator.target_bgt = start, end
            for t in range(total):
                budget, masks = allocator.budget_schedule(t)
                masks = masks or t == total - tfinal  # its caller forces this one
                assert (budget, masks) == budget_schedule(t, **schedule, start=start, end=end)
