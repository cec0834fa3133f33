"""One property decided by Marabou, in an environment of its own: ONNX file, VNN-LIB file and seconds in, a word out."""

import sys
import warnings

warnings.simplefilter("ignore")


def main() -> None:
    from maraboupy import Marabou

    network, found, seconds = sys.argv[1:]
    options = Marabou.createOptions(verbosity=0, timeoutInSeconds=int(float(seconds)))
    outcome, _, _ = Marabou.read_onnx(network).solve(propertyFilename=found, verbose=False, options=options)
    print(outcome)


if __name__ == "__main__":
    main()
