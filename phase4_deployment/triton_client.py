"""Asks a Triton server for the objects in a picture; an example to build your own client on.

pip install tritonclient[http] numpy Pillow
python client.py street.jpg
python client.py street.jpg --server gpu-node:8000 --confidence 0.3
"""

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

MODEL = "detector"


def detect(client: Any, image: "np.ndarray") -> "dict[str, np.ndarray]":
    """The objects in one image, best first.

    Args:
        client: a tritonclient.http.InferenceServerClient.
        image: uint8 RGB (H, W, 3). Send pictures of one size to let them share a batch; do not
            scale or pad them, the model does so itself.

    Returns:
        boxes (N, 4) xyxy in pixels of the image, scores (N,), labels (N,) from 1.
    """
    from tritonclient.http import InferInput

    images = InferInput("images", [1, *image.shape], "UINT8")
    images.set_data_from_numpy(image[None])
    answer = client.infer(MODEL, [images])
    count = int(answer.as_numpy("num")[0, 0])  # the rest of each output is padding
    return {name: answer.as_numpy(name)[0, :count] for name in ("boxes", "scores", "labels")}


def main(argv: "Sequence[str] | None" = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("picture", help="an image file")
    parser.add_argument("--server", default="localhost:8000", help="HOST:PORT")
    parser.add_argument("--confidence", type=float, default=0.5, help="least score, 0 to 1")
    args = parser.parse_args(argv)
    if not 0 <= args.confidence <= 1:  # nor is NaN
        parser.error(f"--confidence: {args.confidence} is not between 0 and 1")
    try:
        import numpy as np
        from PIL import Image, ImageOps
        from tritonclient.http import InferenceServerClient
    except ImportError as error:
        parser.error(f"{error} - run: pip install tritonclient[http] numpy Pillow")

    with Image.open(args.picture) as picture:
        image = np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))
    client = InferenceServerClient(args.server)
    parameters = client.get_model_config(MODEL)["parameters"]
    names = json.loads(parameters["class_names"]["string_value"])
    found = detect(client, image)
    for box, score, label in zip(found["boxes"], found["scores"], found["labels"], strict=True):
        if score >= args.confidence:
            corners = " ".join(f"{value:.1f}" for value in box)
            sys.stdout.write(f"{names[label - 1]} {score:.3f} {corners}\n")


if __name__ == "__main__":
    main()
