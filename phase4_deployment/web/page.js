// The page: a picture from the disk, dropped or pasted, and boxes around what is found in it.

import { loadDetector, runtime } from "./detector.js";

const COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"]; // Okabe and Ito
const element = (id) => document.getElementById(id);
const [canvas, threshold] = [element("picture"), element("threshold")];
let shown = null; // { bitmap, detections }, once there is a picture
let detector = null;

const say = (text) => (element("state").textContent = text);
const painted = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done)));

/** uint8 RGB rows of a bitmap, which a canvas gives with a fourth channel. */
function pixelsOf(bitmap) {
  const { width, height } = bitmap;
  const context = new OffscreenCanvas(width, height).getContext("2d");
  context.drawImage(bitmap, 0, 0);
  const rgba = context.getImageData(0, 0, width, height).data;
  const pixels = new Uint8Array(width * height * 3);
  for (let from = 0, to = 0; from < rgba.length; from += 4) {
    pixels[to++] = rgba[from];
    pixels[to++] = rgba[from + 1];
    pixels[to++] = rgba[from + 2];
  }
  return { pixels, height, width };
}

async function show(blob) {
  try {
    say("Detecting …");
    await painted(); // the detector keeps the page busy
    // "none": the values in the file, which the detector was trained on, not those of this screen
    const bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none" });
    const before = performance.now();
    const [detections] = await detector.detect([pixelsOf(bitmap)]);
    const took = Math.round(performance.now() - before);
    shown = { bitmap, detections };
    draw();
    say(`${bitmap.width} × ${bitmap.height} pixels, ${took} ms in ${runtime}`);
  } catch (error) {
    say(`That did not work: ${error.message ?? error}`);
  }
}

function draw() {
  element("least").textContent = Number(threshold.value).toFixed(2);
  if (!shown) return;
  const { bitmap, detections } = shown;
  const kept = detections.filter(({ score }) => score >= threshold.value);
  const context = canvas.getContext("2d");
  [canvas.width, canvas.height] = [bitmap.width, bitmap.height];
  canvas.hidden = false;
  context.drawImage(bitmap, 0, 0);
  const unit = Math.max(1, Math.hypot(bitmap.width, bitmap.height) / 500);
  context.lineWidth = 2 * unit;
  context.font = `${12 * unit}px system-ui, sans-serif`;
  context.textBaseline = "top";
  for (const detection of kept) drawBox(context, detection);
  for (const detection of kept) drawName(context, detection, unit); // above all boxes
  element("found").replaceChildren(...kept.map(row));
}

const colourOf = (label) => COLOURS[(label - 1) % COLOURS.length];

function drawBox(context, { box: [left, top, right, bottom], label }) {
  context.strokeStyle = colourOf(label);
  context.strokeRect(left, top, right - left, bottom - top);
}

function drawName(context, { box: [left, top], score, label }, unit) {
  const text = `${detector.classNames[label - 1]} ${score.toFixed(2)}`;
  const above = Math.max(0, top - 15 * unit);
  context.fillStyle = colourOf(label);
  context.fillRect(left, above, context.measureText(text).width + 6 * unit, 15 * unit);
  context.fillStyle = "#fff";
  context.fillText(text, left + 3 * unit, above + 1.5 * unit);
}

function row({ box, score, label }) {
  const made = document.createElement("tr");
  for (const text of [detector.classNames[label - 1], score.toFixed(3), ...box.map(Math.round)]) {
    made.insertCell().textContent = text; // a class name is only ever text
  }
  return made;
}

function listen() {
  element("file").addEventListener("change", ({ target }) => target.files[0] && show(target.files[0]));
  threshold.addEventListener("input", draw);
  document.addEventListener("dragover", (event) => event.preventDefault());
  for (const kind of ["drop", "paste"]) {
    document.addEventListener(kind, (event) => {
      event.preventDefault();
      const file = (event.dataTransfer ?? event.clipboardData).files[0];
      if (file) show(file);
    });
  }
}

try {
  detector = await loadDetector("model.onnx");
  element("classes").textContent = detector.classNames.join(", ");
  listen();
  element("file").disabled = false;
  draw();
  say("Ready: choose, drop or paste a picture.");
  const given = new URLSearchParams(location.search).get("picture"); // a file of this server
  if (given) await show(await (await fetch(new URL(given, location.href))).blob());
} catch (error) {
  say(`The detector cannot be loaded: ${error.message ?? error}`);
}
