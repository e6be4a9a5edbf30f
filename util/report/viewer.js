"use strict";

const volume = JSON.parse(document.getElementById("volume").textContent);
const [DEPTH, HEIGHT, WIDTH] = volume.shape, SIZE = [WIDTH, HEIGHT, DEPTH];
// axis that a plane's slider moves along, axes across and down, and whether down runs against the array
const PLANES = [
  { name: "axial", along: 2, across: 0, down: 1, flip: false },
  { name: "coronal", along: 1, across: 0, down: 2, flip: true },
  { name: "sagittal", along: 0, across: 1, down: 2, flip: true },
];
const STRIDES = [1, WIDTH, WIDTH * HEIGHT];
const state = { at: SIZE.map(n => n >> 1), layer: 0, hidden: new Set(), opacity: 0.5 };
const colours = volume.organs.map(o => [1, 3, 5].map(i => parseInt(o.colour.slice(i, i + 2), 16)));

async function unpack(text) {
  const packed = Uint8Array.from(atob(text), c => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

function button(box, text, pressed, click, colour) {
  const made = Object.assign(document.createElement("button"), { type: "button" });
  if (colour) made.append(Object.assign(document.createElement("i"), { style: `background:${colour}` }));
  made.append(text);
  made.setAttribute("aria-pressed", pressed);
  made.addEventListener("click", () => { click(made); draw(); });
  box.append(made);
}

function controls(layers) {
  const box = document.querySelector(".layers");
  if (layers.length > 1) {
    layers.forEach((layer, i) => button(box, layer.name, i === 0, made => {
      state.layer = i;
      for (const other of box.children) other.setAttribute("aria-pressed", other === made);
    }));
  }
  volume.organs.forEach((organ, i) => button(document.querySelector(".organs"), organ.name, true, made => {
    if (!state.hidden.delete(i)) state.hidden.add(i);
    made.setAttribute("aria-pressed", !state.hidden.has(i));
  }, organ.colour));
  const opacity = document.getElementById("opacity");
  opacity.addEventListener("input", () => { state.opacity = opacity.value / 100; draw(); });
}

function makePlane(plane) {
  const figure = document.createElement("figure"), label = document.createElement("label");
  plane.canvas = document.createElement("canvas");
  plane.text = document.createElement("b");
  plane.range = Object.assign(document.createElement("input"), { type: "range", min: 0, max: SIZE[plane.along] - 1 });
  plane.range.setAttribute("aria-label", `${plane.name} slice`);
  plane.range.addEventListener("input", () => { state.at[plane.along] = Number(plane.range.value); draw(); });
  label.append(plane.text, plane.range);
  figure.append(plane.canvas, label);
  document.querySelector(".planes").append(figure);
  const move = event => {
    const box = plane.canvas.getBoundingClientRect();
    // object-fit: contain leaves bars where the height is bounded
    const scale = Math.min(box.width / plane.canvas.width, box.height / plane.canvas.height);
    const place = (pixel, length, shown) => (pixel - (length - shown * scale) / 2) / (shown * scale);
    const clamp = (share, n) => Math.max(0, Math.min(n - 1, Math.floor(share * n)));
    const x = clamp(place(event.clientX - box.left, box.width, plane.canvas.width), SIZE[plane.across]);
    const y = clamp(place(event.clientY - box.top, box.height, plane.canvas.height), SIZE[plane.down]);
    state.at[plane.across] = x;
    state.at[plane.down] = plane.flip ? SIZE[plane.down] - 1 - y : y;
    draw();
  };
  plane.canvas.addEventListener("pointerdown", event => { plane.canvas.setPointerCapture(event.pointerId); move(event); });
  plane.canvas.addEventListener("pointermove", event => { if (event.buttons) move(event); });
  plane.canvas.addEventListener("wheel", event => {
    event.preventDefault();
    const next = state.at[plane.along] + Math.sign(event.deltaY);
    state.at[plane.along] = Math.max(0, Math.min(SIZE[plane.along] - 1, next));
    draw();
  }, { passive: false });
}

/** The slice of a plane in its own pixels, labels mixed in. */
function slice(plane, image, labels) {
  const across = SIZE[plane.across], down = SIZE[plane.down];
  const picture = new ImageData(across, down), start = state.at[plane.along] * STRIDES[plane.along];
  for (let y = 0; y < down; y++) {
    const row = start + (plane.flip ? down - 1 - y : y) * STRIDES[plane.down];
    for (let x = 0; x < across; x++) {
      const from = row + x * STRIDES[plane.across], to = 4 * (y * across + x), organ = labels[from] - 1;
      const mix = organ < 0 || state.hidden.has(organ) ? 0 : state.opacity;
      for (let c = 0; c < 3; c++) picture.data[to + c] = image[from] * (1 - mix) + (mix && colours[organ][c] * mix);
      picture.data[to + 3] = 255;
    }
  }
  return picture;
}

function drawPlane(plane, image, labels) {
  const across = SIZE[plane.across], down = SIZE[plane.down], { canvas } = plane;
  const wide = across * volume.spacing[plane.across], high = down * volume.spacing[plane.down];  // mm
  const width = Math.max(256, Math.round((canvas.clientWidth || 400) * Math.min(devicePixelRatio, 2)));
  Object.assign(canvas, { width, height: Math.max(1, Math.round(width * high / wide)) });
  const pixels = new OffscreenCanvas(across, down), context = canvas.getContext("2d");
  pixels.getContext("2d").putImageData(slice(plane, image, labels), 0, 0);
  context.imageSmoothingQuality = "high";
  context.drawImage(pixels, 0, 0, canvas.width, canvas.height);
  context.strokeStyle = "rgba(255, 255, 255, .35)";
  const x = (state.at[plane.across] + 0.5) / across * canvas.width;
  const level = plane.flip ? down - 1 - state.at[plane.down] : state.at[plane.down];
  const y = (level + 0.5) / down * canvas.height;
  for (const line of [[x, 0, x, canvas.height], [0, y, canvas.width, y]]) {
    context.beginPath();
    context.moveTo(line[0], line[1]);
    context.lineTo(line[2], line[3]);
    context.stroke();
  }
  plane.range.value = state.at[plane.along];
  plane.text.textContent = `${plane.name} ${state.at[plane.along] + 1} of ${SIZE[plane.along]}`;
}

let draw = () => {};

(async () => {
  const image = await unpack(volume.image), layers = volume.layers;
  for (const layer of layers) layer.values = await unpack(layer.labels);
  // begin where most is labelled
  const counts = SIZE.map(n => new Uint32Array(n)), first = layers[0].values;
  for (let z = 0, i = 0; z < DEPTH; z++) for (let y = 0; y < HEIGHT; y++) for (let x = 0; x < WIDTH; x++, i++) {
    if (first[i]) { counts[0][x]++; counts[1][y]++; counts[2][z]++; }
  }
  state.at = counts.map(found => { const most = Math.max(...found); return most ? found.indexOf(most) : found.length >> 1; });
  PLANES.forEach(makePlane);
  draw = () => {
    const labels = layers[state.layer].values;
    for (const plane of PLANES) drawPlane(plane, image, labels);
    const organ = volume.organs[labels[state.at.reduce((sum, at, axis) => sum + at * STRIDES[axis], 0)] - 1];
    document.getElementById("here").textContent = `under the cross: ${organ ? organ.name : "background"}`;
    document.body.dataset.drawn = [...state.at, state.layer, state.opacity, ...state.hidden].join(" ");
  };
  controls(layers);
  draw();
  addEventListener("resize", () => draw());
})();
