"""Makes src/unraze/evaluate/weights: the networks of features for Fashion-MNIST.

    python tools/make_features.py            those that come with the package
    python tools/make_features.py contrast   one of the four, by its name, into the current folder

It prints what each scores on the 10,000 test images, which training never sees: a classifier's
accuracy, and for all the accuracy of a linear probe (logistic regression on the features, by
scikit-learn, fitted on the 60,000 training images). The same machine gives the same bytes.

Classifiers are trained as those of any data set are; the network "contrast" for longer, since
nobody has to wait for it.
"""

import sys
from dataclasses import replace
from pathlib import Path

from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from unraze.config import DataConfig
from unraze.data import Images, load
from unraze.evaluate.feature_files import Score, weights_hash, write
from unraze.evaluate.feature_networks import Net
from unraze.evaluate.feature_training import Recipe, encoded
from unraze.evaluate.features import CLASSIFIERS, FASHION_MNIST, SELF_SUPERVISED, SHIPPED, make
from unraze.evaluate.stage import finish

LONGER = {"contrast": 3}
"""How many times as many steps as its recipe says a network is trained for."""
WEIGHTS = Path(__file__).parents[1] / "src" / "unraze" / "evaluate" / "weights"


def main() -> None:
    """Trains, writes, and says what was made."""
    data = DataConfig(source="fashion-mnist")
    training, held_out = load(data), load(data, split="test")
    assert training.fingerprint == FASHION_MNIST, "these are other images"
    named = sys.argv[1:]
    for recipe in [*CLASSIFIERS, *SELF_SUPERVISED]:
        if recipe.name in named or (not named and recipe in SHIPPED):
            longer = replace(recipe, steps=LONGER.get(recipe.name, 1) * recipe.steps)
            net, score = finish(make(longer, training, held_out))
            folder = Path() if named else WEIGHTS
            file = folder / f"fashion-mnist-{recipe.name.replace(' ', '-')}.safetensors"
            write(file, net, recipe, score)
            _say(file, recipe, net, score, probe(net, training, held_out))


def probe(net: Net, training: Images, held_out: Images) -> float:
    """The accuracy of logistic regression on standardised features."""
    features, test = encoded(net, training.pixels), encoded(net, held_out.pixels)
    scaler = StandardScaler().fit(features)
    regression = LogisticRegression(max_iter=1000)
    regression.fit(scaler.transform(features), training.labels)
    return float(regression.score(scaler.transform(test), held_out.labels))


def _say(file: Path, recipe: Recipe, net: Net, score: Score, probed: float) -> None:
    print(f"{file}: {file.stat().st_size} bytes, weights {weights_hash(net, recipe)[:12]}…")
    print(f"  score {score.share:.4f} of {score.count}, linear probe {probed:.4f}", flush=True)


if __name__ == "__main__":
    main()
