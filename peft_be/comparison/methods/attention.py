"""Words sampled by the attention that the backbone pays to them."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from ...prompting import PromptRenderer
from ...prompting.context import context_length
from ...teacher import common_prefix_length
from .method import Job
from .pruning import Pruner, Word, mean_over_tokens


# Queries whose answers' first tokens do the looking
NUM_QUERIES = 8
# Least probability with which a sentence survives the roulette
MIN_SURVIVAL = 0.1
# After all survivors in the ranking: more than logarithms of weights and Gumbel noise can differ by
_LOST = 1e4
_NO_WEIGHTS = "The model shows no attention weights: take another way to prune its prompts."


class AttentionSampling(Pruner):
    """
    A random sample of P's words, in proportion to the attention that the model pays to them, in the manner of PIS (prompt
    importance sampling, arXiv 2504.16574).

    - Tokens: the importance of a word is the attention it receives from the position that is about to write the answer, mean
      over its tokens, all layers and heads and some training queries, times TF-IDF with sentences as documents, so that words
      which are in every sentence do not win by their number alone.
    - Sentences: Russian roulette. A sentence with less than the average importance goes with a probability that grows with
      the lack, and a survivor's words count more by as much, so that the expectation of each weight is unchanged.
    - Words of the survivors are then drawn without replacement in proportion to their weights until the budget is full; words
      of lost sentences come last. `job.seed` decides.

    Unlike in the paper, the attention is the backbone's and not that of an encoder, and its reinforcement-learned
    network, which sets a rate for each sentence, is left out, because there is one budget for the whole prompt. The paper's
    exponent of TF and its rule of survival were not at hand: 1 and the rule above are choices of this package.

    The arguments are those of [`Pruner`].
    """

    is_random = True

    def importance(self, job: Job, messages: list[dict[str, str]], words: list[Word]) -> Sequence[float]:
        renderer = PromptRenderer(job.tokenizer, messages)
        queries = job.splits.train[:NUM_QUERIES]
        if not queries:
            raise ValueError("The attention to the prompt needs queries that look at it: add training queries.")
        prompts, spans = [renderer.full(query) for query in queries], renderer.prompt_spans(queries[0])
        # All of P, without a token at its end that depends on the query
        end = min(max(i for i, span in enumerate(spans) if span) + 1, common_prefix_length(prompts))
        attention = attention_received(job.model, prompts[0][:end], [prompt[end:] for prompt in prompts])
        weights = mean_over_tokens(messages, words, spans[:end], attention)
        sentences = split_sentences(messages, words)
        weights *= tf_idf([messages[w.message]["content"][w.start : w.end].lower() for w in words], sentences)
        return sample(weights, sentences, job.seed).tolist()


@torch.no_grad()
def attention_received(
    model: PreTrainedModel, prefix_ids: list[int], suffixes: list[list[int]], window: int | None = None
) -> torch.Tensor:
    """
    Attention from the last position of each suffix to the tokens of the prefix in front of it, mean over layers, heads and
    suffixes.

    The prefix is read once, by the model's own attention; weights exist for the suffixes alone. If prefix and suffix do not
    fit the context, the prefix is read in parts of equal size, each after its first token, to which models attend
    whatever it is.

    Args:
        model ([`~transformers.PreTrainedModel`]): the causal LM, not wrapped by PEFT.
        prefix_ids (`list[int]`): what all inputs start with.
        suffixes (`list[list[int]]`): how they go on.
        window (`int`, *optional*): most tokens to read at once; `None` takes the model's context.

    Returns:
        `torch.Tensor` of shape `[len(prefix_ids)]`, float32. With the attention within the suffix it adds up to 1.

    Raises:
        `ValueError`: the model has no attention weights, or a suffix is as long as its context.
    """
    room = (window or context_length(model) or math.inf) - max(map(len, suffixes))
    if room < 2:
        raise ValueError("A query is as long as the model's context: take shorter queries.")
    num_parts = 1 if len(prefix_ids) <= room else math.ceil((len(prefix_ids) - 1) / (room - 1))
    received = torch.zeros(len(prefix_ids))
    before = model.config._attn_implementation
    for part in torch.arange(len(prefix_ids)).tensor_split(num_parts):
        first = int(part[0])
        sink = prefix_ids[:1] if first else []
        ids = sink + [prefix_ids[i] for i in part]
        # Only the decoder: nobody wants logits. The cache of the prefix is kept, and copied for each suffix
        outputs = model.get_decoder()(input_ids=torch.tensor([ids], device=model.device), use_cache=True)
        cache = getattr(outputs, "past_key_values", None)
        if cache is None:
            raise ValueError(_NO_WEIGHTS)
        model.set_attn_implementation("eager")  # the others do not show their weights
        try:
            for suffix in suffixes:
                seen = _last_attention(model, copy.deepcopy(cache), suffix)[: len(ids)]
                # A part of the prefix gets the attention that the whole would get: its share is the part's
                received[part] += seen[len(sink) :] * (len(part) / len(prefix_ids) / len(suffixes))
        finally:
            model.set_attn_implementation(before)
    return received


def _last_attention(model: PreTrainedModel, cache, suffix: list[int]) -> torch.Tensor:
    """Attention of the last token, `[cached + len(suffix)]`, mean over layers and heads."""
    length = cache.get_seq_length() + len(suffix)
    input_ids = torch.tensor([suffix], device=model.device)
    layers = model.get_decoder()(input_ids=input_ids, past_key_values=cache, output_attentions=True).attentions
    layers = [weights[0, :, -1].float().mean(0).cpu() for weights in layers or () if weights is not None]
    if not layers:
        raise ValueError(_NO_WEIGHTS)
    # A layer with a sliding window sees the last tokens only
    return torch.stack([torch.nn.functional.pad(weights, (length - len(weights), 0)) for weights in layers]).mean(0)


def split_sentences(messages: list[dict[str, str]], words: list[Word]) -> torch.Tensor:
    """The number of each word's sentence, `[len(words)]`: sentences end at . ! ? and line breaks."""
    numbers, number = [], 0
    for i, word in enumerate(words):
        previous = words[i - 1] if i else word
        ending = messages[previous.message]["content"][previous.start : previous.end].rstrip("\"'”’)]}»*_")
        if word.message != previous.message or "\n" in word.space or (i and ending.endswith(tuple(".!?。！？"))):
            number += 1
        numbers.append(number)
    # From 0 without holes: the very first word may have a line break in front
    return torch.tensor(numbers) - numbers[0]


def tf_idf(words: list[str], sentences: torch.Tensor) -> torch.Tensor:
    """TF-IDF of each word, `[len(words)]`: its share of all words, and how few sentences have it; 0 for one that all have."""
    counts = Counter(words)
    num_sentences = int(sentences.max()) + 1
    spread = Counter(word for word, _ in set(zip(words, sentences.tolist())))
    # A single sentence tells no words apart
    idf = {w: math.log((1 + num_sentences) / (1 + spread[w])) if num_sentences > 1 else 1.0 for w in counts}
    return torch.tensor([counts[w] / len(words) * idf[w] for w in words], dtype=torch.float64)


def survival(weights: torch.Tensor, sentences: torch.Tensor) -> torch.Tensor:
    """Probability `[num_sentences]` that a sentence survives: its mean weight over that of all words, at most 1."""
    sizes = torch.bincount(sentences)
    means = torch.zeros(len(sizes), dtype=weights.dtype).index_add_(0, sentences, weights) / sizes
    return (means / weights.mean().clamp_min(1e-30)).clamp(MIN_SURVIVAL, 1)


def sample(weights: torch.Tensor, sentences: torch.Tensor, seed: int) -> torch.Tensor:
    """
    Roulette, then a ranking of the words that is a draw without replacement: the logarithm of the weight plus Gumbel noise,
    whose largest k are such a draw for every k.

    Args:
        weights (`torch.Tensor` of shape `[N]`): at least 0.
        sentences (`torch.Tensor` of shape `[N]`): numbers of the words' sentences.
        seed (`int`): of roulette and noise.

    Returns:
        `torch.Tensor` of shape `[N]`: the larger, the earlier drawn.
    """
    generator = torch.Generator().manual_seed(seed)
    probability = survival(weights, sentences)
    lost = torch.rand(len(probability), generator=generator, dtype=torch.float64) >= probability
    noise = torch.rand(len(weights), generator=generator, dtype=torch.float64).clamp_min(1e-30)
    keys = (weights / probability[sentences]).clamp_min(1e-30).log() - (-noise.log()).log()
    return keys - _LOST * lost[sentences]
