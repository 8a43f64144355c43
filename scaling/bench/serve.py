"""Speed of a server's answers with several clients: what ``scaling bench serve`` measures.

Clients are coroutines that ask one request after the other, as a server's handlers do; HTTP itself is left out.
"""

import asyncio
import dataclasses
import statistics
import time
from collections.abc import Iterator

import jax
import numpy as np

from scaling.bench.quiet import Timing
from scaling.config import schema as cfg
from scaling.config.resolve import resolve_model
from scaling.data import tokenizer
from scaling.generate.continuous import Engine
from scaling.generate.generator import Generator
from scaling.generate.sampling import Sampling
from scaling.model import decoder
from scaling.serve.answers import Answering
from scaling.serve.models import Model
from scaling.serve.requests import Ask
from scaling.serve.turns import Turns

PROMPTS, NEW = (8, 64), (24, 72)  # least and most tokens of a request
