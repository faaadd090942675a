"""How figures are told: a KL says little without the KL of no prompt on the same queries."""

from __future__ import annotations


# A KL below this is told as 0.0000: that of sums in another order, or of a prompt that is not there
NO_KL = 5e-5
# What a target can be a share of, and what it is called
TARGET_METRICS = {"kl_gap_closed": "Gap closed", "same_answers": "Same answers"}


def gap_closed(kl: float, kl_no_prompt: float | None) -> float | None:
    """
    The share of the way from no prompt to the full prompt: 1 is the behaviour with the full prompt, 0 without a prompt.
    `None` where the prompt changes nothing (below `NO_KL` nats a token), or its KL is not known.
    """
    return None if kl_no_prompt is None or kl_no_prompt < NO_KL else 1 - kl / kl_no_prompt


def kl_sentence(kl: float, kl_no_prompt: float | None, num_queries: int, which: str = "validation") -> str:
    """A KL, the one of no prompt on the same queries, and the gap that is closed, without a full stop."""
    queries = f"{num_queries} {which} quer{'y' if num_queries == 1 else 'ies'}"
    text = f"KL to the full prompt on {queries}: {kl:.4f} nats a token"
    if kl_no_prompt is None:
        return text
    gap = gap_closed(kl, kl_no_prompt)
    worth = "there is no gap to close" if gap is None else f"gap closed {gap:.3f}"
    return f"{text}, {kl_no_prompt:.4f} without a prompt: {worth}"


def stand_in_length(scores: dict) -> str:
    """How many tokens stand for the prompt: `be_tokens` rows, and `kept_tokens` of it that stayed text."""
    kept = scores.get("kept_tokens")
    return f"{scores['be_tokens']} and {kept} of kept text" if kept else f"{scores['be_tokens']}"


def best_sentence(report: dict) -> str:
    """What `training.json` says of the rows that were kept, as one sentence without a full stop."""
    best = dict(report["best"])
    step = best.pop("step")
    if "kl" in best:
        count = report["num_queries"]["validation"]
        told = kl_sentence(best["kl"], best.get("kl_no_prompt"), count)
        if best.get("same_answers"):  # of prose none is, and nobody expects it
            same, without = (round(count * best[name]) for name in ("same_answers", "same_answers_no_prompt"))
            told += f", {same} of {count} answers the same, word for word ({without} without a prompt)"
    else:
        told = ", ".join(f"best {name} {value:.4f}" for name, value in best.items())
    return f"{told} (step {step})"


def rows_in_words(k: int) -> str:
    return f"{k} row{'' if k == 1 else 's'}"


def metric_of(search: dict) -> str:
    """The key of `TARGET_METRICS` that a search went by. Earlier versions had one alone, and did not name it."""
    return search.get("metric", "kl_gap_closed")


def search_sentences(search: dict) -> str:
    """What `training.json` says of the search for a k: what each k reached, and which was chosen."""
    metric = metric_of(search)

    def told(full: bool) -> str:
        own = sorted((entry for entry in search["curve"] if entry["full"] == full), key=lambda entry: entry["k"])
        return ", ".join(f"{rows_in_words(entry['k'])} {entry[metric]:.2f}" for entry in own)

    steps = [entry["steps"] for entry in search["curve"] if not entry["full"]]
    probes = f"after {steps[-1]} steps: {told(False)}; " if steps else ""
    are = f"{rows_in_words(search['k'])} {'is' if search['k'] == 1 else 'are'}"
    verdict = "the fewest found that reach" if search["reached"] else "the nearest found to"
    return f"{TARGET_METRICS[metric]} {probes}after all steps: {told(True)}. {are} {verdict} the target of {search['target']:g}."
