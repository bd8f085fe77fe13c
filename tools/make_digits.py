"""Makes src/unraze/data/digits.npz from scikit-learn's copy of the digits.

    python tools/make_digits.py

The images are the test part of "Optical Recognition of Handwritten Digits" (E. Alpaydin,
C. Kaynak, UCI Machine Learning Repository, 1998, CC BY 4.0: https://doi.org/10.24432/C50P49), as
scikit-learn (BSD-3-Clause) distributes them. Kept as they are: levels 0 … 16, uint8 (1797, 8, 8).
"""

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits


def main() -> None:
    """Writes the file and says how large it is."""
    digits = load_digits()
    out = Path(__file__).parents[1] / "src" / "unraze" / "data" / "digits.npz"
    np.savez_compressed(
        out, images=digits.images.astype(np.uint8), labels=digits.target.astype(np.uint8)
    )
    print(f"{out}: {out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
