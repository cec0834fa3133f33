"""Discordance of networks on scikit-learn's digits: the figures beside `planning._TYPICAL_DISCORDANCE`."""

import copy
import warnings

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier


def rounded(model: MLPClassifier, bits: int) -> MLPClassifier:
    """Return the model with symmetric integer weights, one scale a layer."""
    result = copy.deepcopy(model)
    levels = 2 ** (bits - 1) - 1
    result.coefs_ = [np.round(w * levels / np.abs(w).max()) * np.abs(w).max() / levels for w in model.coefs_]
    return result


def main() -> None:
    warnings.simplefilter("ignore")  # 150 iterations are enough, and not converged
    inputs, labels = load_digits(return_X_y=True)
    train, test, train_labels, test_labels = train_test_split(inputs / 16, labels, test_size=0.5, random_state=0)
    models = [MLPClassifier((64,), max_iter=150, random_state=seed).fit(train, train_labels) for seed in range(3)]
    correct = [model.predict(test) == test_labels for model in models]
    for bits in (8, 4):
        print(f"int{bits}: {np.mean((rounded(models[0], bits).predict(test) == test_labels) != correct[0]):.3f}")
    for one, other in ((0, 1), (0, 2), (1, 2)):
        print(f"seeds {one} and {other}: {np.mean(correct[one] != correct[other]):.3f}")


if __name__ == "__main__":
    main()
