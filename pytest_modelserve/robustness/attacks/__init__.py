"""Attacks: searches for admissible rows that a served model predicts wrong, each a frozen dataclass.

A new attack is one class, imported here and listed in `__all__`: see the docstring of `attack.py`.
"""

from pytest_modelserve.robustness.attacks.adversarial_rows import AdversarialRows, saved
from pytest_modelserve.robustness.attacks.attack import AnswerReader, Answers, Attack, Target
from pytest_modelserve.robustness.attacks.boundary import boundary
from pytest_modelserve.robustness.attacks.characters import characters
from pytest_modelserve.robustness.attacks.gradient import apgd, pgd
from pytest_modelserve.robustness.attacks.random_search import random_search
from pytest_modelserve.robustness.attacks.square import square
from pytest_modelserve.robustness.attacks.threat_model import ThreatModel

__all__ = [
    "AdversarialRows",
    "AnswerReader",
    "Answers",
    "Attack",
    "Target",
    "ThreatModel",
    "apgd",
    "boundary",
    "characters",
    "pgd",
    "random_search",
    "saved",
    "square",
]
