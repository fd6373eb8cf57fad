"""A program in a browser's place: it asks for what the page would ask for, and posts what a test
wants it to post. `python fake_browser.py BEHAVIOUR [options …] URL`"""

import json
import sys
import time
import urllib.request

behaviour, url = sys.argv[1], sys.argv[-1]
here = url.rsplit("/", 1)[0]


def get(name):
    with urllib.request.urlopen(f"{here}/{name}") as answer:
        return answer.headers["Content-Type"], answer.read()


def post(content, name="result"):
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    urllib.request.urlopen(urllib.request.Request(f"{here}/{name}", body)).close()


if behaviour == "ends":
    sys.exit("cannot open display")
if behaviour == "hangs":
    time.sleep(600)
for name in ("check.html", "detector.js", "ort/ort.wasm.min.mjs", "model.onnx"):
    get(name)
if behaviour == "fails":
    post({"error": "RangeError: out of memory"})
    time.sleep(600)
if behaviour == "nonsense":
    for body, name in ((b"{", "result"), (b"{}", "elsewhere"), (b"", "result")):
        try:
            post(body, name)
        except urllib.error.HTTPError as error:
            assert error.code == 400  # noqa: PT017
        else:
            sys.exit("it was taken")
types = {name: get(name)[0] for name in ("ort/ort-wasm-simd-threaded.wasm", "detector.js")}
post({"version": json.dumps(types)})
pixels, start = get("batches.bin")[1], 0
for count, height, width in json.loads(get("batches.json")[1]):
    found = []
    for _ in range(count):  # one box as large as the picture, with a score from its first pixel
        found.append([{"box": [0, 0, width, height], "score": pixels[start] / 256, "label": 1}])
        start += height * width * 3
    post({"detections": found, "milliseconds": 7})
time.sleep(600)  # a browser stays open
