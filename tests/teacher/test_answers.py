"""What the teacher writes does not depend on how the work was cut into batches, caches and runs."""

from pathlib import Path

import pytest
import torch

from peft_be.teacher import (
    AnswerCache,
    AnswerSettings,
    answer_states,
    generate_answers,
    model_fingerprint,
    share_prefix,
)
from peft_be.teacher.answers import common_prefix_length

from .models import NOT_SHARED, PROMPTS, SETTINGS, SHARED, assert_same, make


@pytest.mark.parametrize("name", SHARED)
def test_shared_prefix_writes_the_same_answers(name):
    model = make(SHARED[name]())
    prefix = share_prefix(model, PROMPTS)
    assert prefix.length == 40
    shared = generate_answers(model, PROMPTS, SETTINGS, 0, prefix=prefix)
    assert_same(shared, generate_answers(model, PROMPTS, SETTINGS, 0))
    one_by_one = generate_answers(model, PROMPTS, AnswerSettings(max_new_tokens=6, batch_size=1), 0)
    assert_same(shared, one_by_one)


@pytest.mark.parametrize("name", [*SHARED, *NOT_SHARED])
def test_states_of_written_answers_are_those_of_writing_them(name):
    model = make({**SHARED, **NOT_SHARED}[name]())
    prefix = share_prefix(model, PROMPTS)
    assert (prefix is None) == (name in NOT_SHARED)
    written = generate_answers(model, PROMPTS, SETTINGS, 0, prefix=prefix)
    given = answer_states(model, PROMPTS, [a.ids for a in written], batch_size=3, prefix=prefix)
    assert_same(written, given)


def test_states_predict_the_greedy_answer():
    model = make(SHARED["llama"]())
    for answer in generate_answers(model, PROMPTS, SETTINGS, 0, prefix=share_prefix(model, PROMPTS)):
        assert model.lm_head(answer.hidden).argmax(-1).tolist() == answer.ids


def test_answers_end_with_the_end_of_turn_token():
    model = make(SHARED["llama"]())
    first = generate_answers(model, PROMPTS, SETTINGS, 0)[0].ids
    model.generation_config.eos_token_id = first[2]
    cut = generate_answers(model, PROMPTS, SETTINGS, 0)[0].ids
    assert cut == first[: first.index(first[2]) + 1]


def test_cache_continues_and_gives_the_same_numbers(tmp_path):
    model = make(SHARED["llama"]())
    settings = AnswerSettings(max_new_tokens=6, batch_size=2, num_answers=2, temperature=1.0, seed=3)
    fresh = generate_answers(model, PROMPTS, settings, 0)
    cache = AnswerCache(tmp_path, {"a": 1})
    with pytest.raises(KeyboardInterrupt):  # interrupted after the first batch

        def interrupt(done, total):
            raise KeyboardInterrupt

        generate_answers(model, PROMPTS, settings, 0, cache=cache, on_progress=interrupt)
    files = sorted(cache.directory.iterdir())
    assert len(files) == 1
    before = files[0].stat().st_mtime_ns
    assert_same(generate_answers(model, PROMPTS, settings, 0, cache=cache), fresh, exact=True)
    assert files[0].stat().st_mtime_ns == before
    assert [a.query for a in fresh] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_a_damaged_cache_file_is_written_again(tmp_path):
    model = make(SHARED["llama"]())
    cache = AnswerCache(tmp_path, {})
    generate_answers(model, PROMPTS, SETTINGS, 0, cache=cache)
    fresh = generate_answers(model, PROMPTS, SETTINGS, 0)
    damaged = sorted(cache.directory.iterdir())[0]
    damaged.write_bytes(damaged.read_bytes()[:40])
    assert_same(generate_answers(model, PROMPTS, SETTINGS, 0, cache=cache), fresh, exact=True)


def test_different_keys_do_not_meet(tmp_path):
    assert AnswerCache(tmp_path, {"a": 1}).directory != AnswerCache(tmp_path, {"a": 2}).directory


def test_fingerprint_sees_weights_and_dtype():
    model = make(SHARED["llama"]())
    prints = {model_fingerprint(model)}
    model.lm_head.weight[0, 0] += 1
    prints.add(model_fingerprint(model))
    prints.add(model_fingerprint(model.to(torch.bfloat16)))
    assert len(prints) == 3


def test_fingerprint_sees_the_configuration_and_not_where_it_lies():
    model = make(SHARED["llama"]())
    first = model_fingerprint(model)
    model.config._name_or_path = "elsewhere"
    assert model_fingerprint(model) == first
    model.config.rms_norm_eps *= 2
    second = model_fingerprint(model)
    model.generation_config.eos_token_id = 5
    assert len({first, second, model_fingerprint(model)}) == 3


def test_the_models_own_decoding_settings_change_nothing():
    model = make(SHARED["llama"]())
    expected = generate_answers(model, PROMPTS, SETTINGS, 0)
    own = model.generation_config
    own.repetition_penalty, own.num_beams, own.no_repeat_ngram_size, own.min_new_tokens = 1.5, 4, 1, 3
    assert_same(generate_answers(model, PROMPTS, SETTINGS, 0), expected, exact=True)
    assert model.generation_config is own and own.num_beams == 4
    own.suppress_tokens = [expected[0].ids[0]]  # of a merged model: what it must not write
    assert expected[0].ids[0] not in generate_answers(model, PROMPTS, SETTINGS, 0)[0].ids


def test_several_answers_need_sampling():
    with pytest.raises(ValueError, match="sampling"):
        AnswerSettings(num_answers=2)


@pytest.mark.parametrize(
    "sequences, length",
    [([[1, 2, 3], [1, 2, 4]], 2), ([[1, 2], [1, 2, 4]], 1), ([[1, 2, 3]], 2), ([[1], [2]], 0), ([[5, 6], [5, 6]], 1)],
)
def test_common_prefix_leaves_a_token_of_each(sequences, length):
    assert common_prefix_length(sequences) == length


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux tells what is mapped")
def test_cached_states_are_mapped_from_their_files(tmp_path):
    model = make(SHARED["llama"]())
    answers = generate_answers(model, PROMPTS, SETTINGS, 0, cache=AnswerCache(tmp_path, {"a": 1}))
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    for answer in answers:
        start = answer.hidden.data_ptr()
        ranges = [([int(end, 16) for end in line[0].split("-")], line[-1]) for line in maps]
        assert next(name for (low, high), name in ranges if low <= start < high).endswith(".safetensors")
