"""What every test shares: no network, one thread, the same seed. Warnings are errors; see pyproject.toml."""

import os

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_DATASETS_OFFLINE": "1", "DO_NOT_TRACK": "1"}

import random

import numpy
import pytest
import torch
from hypothesis import settings
from transformers.utils import logging

torch.set_num_threads(1)
logging.set_verbosity_error()
settings.register_profile("untimed", deadline=None)  # how long a case takes is the machine's affair
settings.load_profile("untimed")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    random.seed(0)
    numpy.random.seed(0)
    torch.manual_seed(0)
