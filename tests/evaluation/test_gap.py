"""The shares of the gap that are told side by side."""

import statistics
from dataclasses import asdict, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peft_be.evaluation.gap import MIN_QUERY_KL, MIN_TOKENS, AnswerKL, Gap


ANSWERS = st.lists(
    st.tuples(
        st.integers(1, 64),  # tokens
        st.floats(0, 1),  # which share of them is quoted
        *[st.floats(1e-3, 5)] * 4,  # the KL of the stand-in and of no prompt, of quoted tokens and of the others
    ),
    min_size=1,
    max_size=12,
)


def sides(answers):
    """The stand-in and no prompt, from the KL of quoted tokens and of the others."""
    made = {"stand-in": ([], []), "none": ([], [])}
    tokens = [count for count, *_ in answers]
    quoted = [round(share * count) for count, share, *_ in answers]
    for (_, _, *kls), count, marked in zip(answers, tokens, quoted):
        for (query_kl, quoted_kl), on_quoted, on_rest in zip(made.values(), kls[:2], kls[2:]):
            query_kl.append((on_quoted * marked + on_rest * (count - marked)) / count)
            quoted_kl.append(on_quoted if marked else 0.0)
    return [AnswerKL(query_kl, tokens, quoted_kl, quoted) for query_kl, quoted_kl in made.values()]


@given(ANSWERS)
def test_each_share_is_what_its_tokens_or_queries_say(answers):
    stand_in, none = sides(answers)
    gap = Gap.between(stand_in, none)
    assert gap.mean == pytest.approx(1 - stand_in.mean / none.mean)
    own = [1 - a / b for a, b in zip(stand_in.query_kl, none.query_kl) if b >= MIN_QUERY_KL]
    assert gap.median_queries + gap.unchanged_queries == len(answers) and gap.median_queries == len(own)
    assert (gap.median is None) is (not own)
    if own:
        assert gap.median == pytest.approx(statistics.median(own))
    counts = {"quoted": sum(none.quoted_tokens), "behaviour": sum(none.query_tokens) - sum(none.quoted_tokens)}
    assert gap.quoted_share == pytest.approx(counts["quoted"] / sum(counts.values()))
    for name, count in counts.items():
        assert (getattr(gap, name) is None) is (count < MIN_TOKENS)
    sums = {
        "quoted": [sum(answer[i] * m for answer, m in zip(answers, none.quoted_tokens)) for i in (2, 3)],
        "behaviour": [
            sum(answer[i] * (n - m) for answer, n, m in zip(answers, none.query_tokens, none.quoted_tokens))
            for i in (4, 5)
        ],
    }
    for name, (kl, zero) in sums.items():
        if counts[name] >= MIN_TOKENS:
            assert getattr(gap, name) == pytest.approx(1 - kl / zero, rel=1e-6, abs=1e-6)


@settings(max_examples=30)  # each draws thousands of samples
@given(ANSWERS)
def test_intervals_are_in_the_range_of_the_queries(answers):
    stand_in, none = sides(answers)
    gap = Gap.between(stand_in, none)
    assert asdict(gap) == asdict(Gap.between(stand_in, none))  # a fixed seed
    own = [1 - a / b for a, b in zip(stand_in.query_kl, none.query_kl)]
    for name in ("median", "mean"):
        interval = getattr(gap, f"{name}_interval")
        if interval is None:
            assert len(answers) == 1 or (name == "median" and gap.median_queries < 2)
            continue
        low, high = interval
        assert min(own) - 1e-9 <= low <= high <= max(own) + 1e-9


@settings(max_examples=30)  # each draws thousands of samples
@given(ANSWERS, st.floats(0, 1))
def test_what_leaves_the_same_share_everywhere_has_one_gap(answers, share):
    _, none = sides(answers)
    scaled = ([share * kl for kl in side] for side in (none.query_kl, none.quoted_kl))
    stand_in = AnswerKL(next(scaled), none.query_tokens, next(scaled), none.quoted_tokens)
    gap = Gap.between(stand_in, none)
    for value in (gap.median, gap.behaviour, gap.quoted, gap.mean, *(gap.mean_interval or ())):
        assert value is None or value == pytest.approx(1 - share, abs=1e-9)


def test_a_few_answers_decide_the_mean_and_not_the_median():
    """Two queries of twenty-four, which the full prompt answers with its own text, as in the persona of the issue."""
    tokens, quoted = [64] * 24, [60, 60] + [0] * 22
    none = AnswerKL([3.0, 3.0] + [0.1] * 22, tokens, [3.1, 3.1] + [0.0] * 22, quoted)
    stand_in = AnswerKL([2.4, 2.4] + [0.05] * 22, tokens, [2.5, 2.5] + [0.0] * 22, quoted)
    gap = Gap.between(stand_in, none)
    assert gap.mean < 0.3 and gap.median == pytest.approx(0.5) and gap.median_interval == pytest.approx((0.5, 0.5))
    assert gap.behaviour > 0.45 and gap.quoted == pytest.approx(1 - 2.5 / 3.1)
    assert gap.mean_interval[1] - gap.mean_interval[0] > 0.2


def test_the_interval_is_that_of_other_samples():
    """The median of 100 numbers, evenly from 0 to 1: 95 % of samples have theirs within 0.1."""
    zero = AnswerKL([1.0] * 100, [1] * 100, None, None)
    gap = Gap.between(replace(zero, query_kl=[i / 100 for i in range(100)]), zero)
    assert gap.median == pytest.approx(0.505)
    assert gap.median_interval[0] == pytest.approx(0.4, abs=0.05)
    assert gap.median_interval[1] == pytest.approx(0.6, abs=0.05)


def test_queries_on_which_the_prompt_changes_nothing_have_no_share():
    zero = AnswerKL([0.2, 0.2, 1e-3, 0.0], [8] * 4, None, None)
    gap = Gap.between(replace(zero, query_kl=[0.1, 0.1, 0.05, 0.05]), zero)
    assert (gap.median, gap.median_queries, gap.unchanged_queries) == (0.5, 2, 2)
    assert gap.quoted is gap.behaviour is gap.quoted_share is gap.behaviour_interval is None  # nobody knows
    nothing = replace(zero, query_kl=[1e-6] * 4)
    gap = Gap.between(nothing, nothing)
    assert gap.median is gap.mean is gap.mean_interval is gap.median_interval is None and gap.unchanged_queries == 4
