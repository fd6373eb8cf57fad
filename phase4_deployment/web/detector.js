// The exported detector in onnxruntime-web: the same .onnx file, read by the browser.
//
//   const detector = await loadDetector("model.onnx");
//   const [detections] = await detector.detect([{ pixels, height, width }]);

import * as ort from "./ort/ort.wasm.min.mjs";

ort.env.wasm.wasmPaths = new URL("./ort/", import.meta.url).href;

export const runtime = `onnxruntime-web ${ort.env.versions.web}`;

/**
 * @param {string} url of a file that export_onnx.py wrote
 * @returns {Promise<{metadata: Object<string, string>, classNames: string[], detect: Function}>}
 *   `detect` takes images of one size, `pixels` being their uint8 RGB rows, and resolves to an array
 *   for each image: {box: [x1, y1, x2, y2] in its pixels, score, label from 1}, best first.
 */
export async function loadDetector(url) {
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${url}: ${response.status} ${response.statusText}`);
  const file = new Uint8Array(await response.arrayBuffer());
  const metadata = readMetadata(file);
  const session = await ort.InferenceSession.create(file, { executionProviders: ["wasm"] });
  return {
    metadata,
    classNames: JSON.parse(metadata.class_names),
    detect: (images) => detect(session, images),
  };
}

async function detect(session, images) {
  const { height, width } = images[0];
  const bytes = height * width * 3;
  const batch = new Uint8Array(images.length * bytes);
  images.forEach((image, index) => batch.set(image.pixels, index * bytes));
  const tensor = new ort.Tensor("uint8", batch, [images.length, height, width, 3]);
  const { boxes, scores, labels, num } = await session.run({ images: tensor });
  const slots = scores.dims[1];
  return images.map((_, index) =>
    Array.from({ length: Number(num.data[index]) }, (_, row) => {
      const place = index * slots + row;
      return {
        box: Array.from(boxes.data.subarray(4 * place, 4 * place + 4)),
        score: scores.data[place],
        label: Number(labels.data[place]),
      };
    }),
  );
}

/**
 * What the file says of itself, which onnxruntime-web does not tell: `metadata_props` (field 14) of
 * the ModelProto, key and value being fields 1 and 2 of each entry.
 */
export function readMetadata(file) {
  const text = (bytes) => new TextDecoder().decode(bytes);
  const metadata = {};
  for (const { field, bytes } of protobufFields(file)) {
    if (field !== 14) continue;
    const entry = [...protobufFields(bytes)];
    const part = (number) => entry.find((one) => one.field === number)?.bytes ?? new Uint8Array();
    metadata[text(part(1))] = text(part(2));
  }
  if (!metadata.class_names) throw new Error("not a detector that export_onnx.py wrote");
  return metadata;
}

/** The length-delimited fields of one protobuf message (protobuf.dev, "Encoding"). */
function* protobufFields(message) {
  let position = 0;
  const varint = () => {
    let value = 0;
    for (let factor = 1; ; factor *= 128) {
      if (position >= message.length) throw new Error("the file is cut off or no ONNX file");
      const byte = message[position++];
      value += (byte & 127) * factor;
      if (byte < 128) return value;
    }
  };
  while (position < message.length) {
    const tag = varint();
    const kind = tag % 8;
    if (kind === 0) varint();
    else if (kind === 1) position += 8;
    else if (kind === 5) position += 4;
    else if (kind === 2) {
      const length = varint();
      if (position + length > message.length) throw new Error("the file is cut off");
      yield { field: Math.floor(tag / 8), bytes: message.subarray(position, position + length) };
      position += length;
    } else throw new Error("no ONNX file");
  }
}
