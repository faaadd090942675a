import pytest

from .tuner_helpers import CONFIGS, make_model


@pytest.fixture(params=CONFIGS)
def model_name(request):
    return request.param


@pytest.fixture
def base_model(model_name):
    return make_model(model_name)
