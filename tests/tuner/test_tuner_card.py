"""Whatever saves an adapter writes its card, and leaves what somebody edited alone."""

import pytest
from huggingface_hub import ModelCard
from peft import get_peft_model

from peft_be import BETokenConfig
from peft_be.adapters.card import TAGS, add_scores, fidelity_figures

from .tuner_helpers import make_model


TRAINING = {"steps": 600, "train_queries": 300, "validation_queries": 30, "validation_kl": 0.12345}


@pytest.fixture
def model():
    base = make_model("llama")
    base.name_or_path = base.config._name_or_path = "org/tiny"
    return get_peft_model(base, BETokenConfig(task_type="CAUSAL_LM"))


def saved(model, folder):
    model.save_pretrained(folder)
    return ModelCard.load(folder / "README.md")


def test_the_card_is_written_and_kept_up_to_date(model, tmp_path):
    card = saved(model, tmp_path)
    assert "Not recorded" in card.text and "More Information Needed" not in card.text
    config = model.peft_config["default"]
    config.provenance = {"prompt_tokens": 1234, "stages": ["stage 1", "stage 2"], "training": TRAINING}
    card = saved(model, tmp_path)
    assert card.text.startswith("# A prompt of 1,234 tokens in one learned token")
    for text in (
        "import peft_be",
        "Not a secret",
        "Stage 1, then stage 2, 600 steps on 300 queries",
        "30 other queries",
    ):
        assert text in card.text
    data = card.data
    assert (data.library_name, data.base_model, data.pipeline_tag) == ("peft", "org/tiny", "text-generation")
    assert set(TAGS) <= set(data.tags) and not any("base_model:" in tag for tag in data.tags)
    (result,) = data.eval_results
    assert (result.dataset_name, result.metric_type, result.metric_value) == ("validation queries", "kl", 0.1235)
    assert saved(model, tmp_path).content == card.content


def test_what_somebody_edited_stays(model, tmp_path):
    path = tmp_path / "README.md"
    card = saved(model, tmp_path)
    card.data.license = "mit"
    card.save(path)
    for edited in (
        card.text.replace("## Use", "## How to use it"),
        card.text + "\n## More\n\nAt the end.\n",
        "# Mine",
    ):
        card.text = edited
        card.save(path)
        model.peft_config["default"].provenance = {"training": TRAINING}
        again = saved(model, tmp_path)
        # PEFT adds its version to any text
        assert again.text.split("### Framework")[0].strip() == card.text.split("### Framework")[0].strip()
        assert ("At the end." in again.text) == ("At the end." in edited)
        assert again.data.license == "mit" and len(again.data.eval_results) == 1


def test_each_adapter_of_a_model_has_its_card(model, tmp_path):
    model.add_adapter("other", BETokenConfig(task_type="CAUSAL_LM", num_be_tokens=2))
    model.save_pretrained(tmp_path)
    assert "one learned token" in (tmp_path / "README.md").read_text()
    assert "2 learned tokens" in (tmp_path / "other" / "README.md").read_text()


def test_a_configuration_alone_has_no_card(tmp_path):
    BETokenConfig().save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter_config.json"]


def test_scores_stand_in_the_metadata_until_other_rows_are_saved(model, tmp_path):
    config = model.peft_config["default"]
    config.provenance = {"training": TRAINING}
    before = saved(model, tmp_path)
    both = {"no_prompt": 0.75, "be": 0.25}
    scores = {"num_queries": 9, "kl": both, "kl_gap_closed": 2 / 3, "top1_agreement": both, "answer_rouge_l": both}
    scores["same_answers"] = both
    scores["gap"] = {"median": 0.71234, "behaviour": None}
    for _ in range(2):  # the second time instead of the first
        add_scores(tmp_path, config, scores)
        card = ModelCard.load(tmp_path / "README.md")
        found = {(r.dataset_name, r.metric_type): r.metric_value for r in card.data.eval_results}
        assert len(card.data.eval_results) == 8 and found["9 held-out queries", "kl_gap_closed"] == 0.6667
        assert next(name for name in found if name[0] == "9 held-out queries")[1] == "gap_median"
        assert found["9 held-out queries", "gap_median"] == 0.7123
        assert fidelity_figures(tmp_path, config)["9 held-out queries"]["gap_median"] == 0.7123
        assert card.text == before.text
    assert saved(model, tmp_path).content == before.content


def test_pass_rates_of_checks_come_first(model, tmp_path):
    config = model.peft_config["default"]
    saved(model, tmp_path)
    both = {"no_prompt": 0.75, "be": 0.25}
    scores = {
        "num_queries": 9,
        "kl": both,
        "kl_gap_closed": None,
        "gap": {"median": None, "behaviour": None},
        "top1_agreement": both,
        "answer_rouge_l": both,
        "same_answers": both,
    }
    scores["checks"] = {"says 'yes': #1": {"full": 1.0, "no_prompt": 0.0, "be": 2 / 3}}
    add_scores(tmp_path, config, scores)
    first, second, *others = ModelCard.load(tmp_path / "README.md").data.eval_results
    assert (first.metric_type, first.metric_value) == ("check_pass_rate", 0.6667)
    assert first.metric_name == "Answers that pass: says 'yes': #1"
    assert (second.metric_type, second.metric_value) == ("check_pass_rate_full", 1) and others[0].metric_type == "kl"
