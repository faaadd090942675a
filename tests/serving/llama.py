"""llama.cpp, as llama-cpp-python has it."""

import ctypes
from contextlib import contextmanager

import numpy as np
import pytest


GGML_TYPE_F32 = 0


def llama_library():
    """The functions of llama.cpp itself, or a skip."""
    return pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed").llama_cpp


def open_llama(path, exact=False):
    """The model in a file; `exact` keeps keys and values in float32, which are float16 by default."""
    types = {"type_k": GGML_TYPE_F32, "type_v": GGML_TYPE_F32} if exact else {}
    llama_library()
    from llama_cpp import Llama

    return Llama(str(path), n_ctx=256, n_threads=1, verbose=False, **types)


def llama_logits(llama, ids):
    """The logits after the last of `ids`, as llama.cpp computes them."""
    llama.reset()
    llama.eval(ids)
    return np.ctypeslib.as_array(llama_library().llama_get_logits_ith(llama.ctx, -1), (llama.n_vocab(),)).copy()


def llama_greedy(llama, ids, length):
    answer = []
    # The most probable token, and no penalty for repetition, which is on by default
    for token in llama.generate(ids, top_k=1, repeat_penalty=1.0):
        answer.append(token)
        if len(answer) == length or token == llama.token_eos():
            break
    return answer


@contextmanager
def loaded_lora(llama, *paths):
    """Load LoRA adapters without applying them; gives a function that applies some of them, by their scales."""
    library = llama_library()
    adapters = [library.llama_adapter_lora_init(llama.model, str(path).encode()) for path in paths]
    assert all(adapters)

    def apply(*scales):
        chosen = [(adapter, scale) for adapter, scale in zip(adapters, scales, strict=True) if scale]
        pointers = (library.llama_adapter_lora_p_ctypes * len(chosen))(*(adapter for adapter, _ in chosen))
        numbers = (ctypes.c_float * len(chosen))(*(scale for _, scale in chosen))
        assert library.llama_set_adapters_lora(llama.ctx, pointers, len(chosen), numbers) == 0

    yield apply
    library.llama_set_adapters_lora(llama.ctx, None, 0, None)
    for adapter in adapters:
        library.llama_adapter_lora_free(adapter)


def quantised(path, target, file_type, **types):
    """What llama.cpp's own quantiser makes of a GGUF file."""
    library = llama_library()
    parameters = library.llama_model_quantize_default_params()
    parameters.ftype, parameters.nthread, parameters.allow_requantize = file_type, 1, True
    for name, value in types.items():
        setattr(parameters, name, value)
    assert library.llama_model_quantize(str(path).encode(), str(target).encode(), ctypes.byref(parameters)) == 0
    return target
