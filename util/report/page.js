"use strict";

// colours that colour-blind readers tell apart on grey (Okabe and Ito)
const HIT = [86, 180, 233], EXTRA = [213, 94, 0], MISSED = [240, 228, 66];
const TRUTH = "#F0E442", PREDICTION = "#56B4E9";
const MODES = { map: "disagreement", contours: "contours", none: "image" };
const LEGENDS = {
  map: [["found", HIT], ["too much", EXTRA], ["missed", MISSED]],
  contours: [["truth", TRUTH], ["prediction", PREDICTION]],
  none: [],
};

/** Mask (Uint8Array) from lengths of runs, outside and inside in turn. */
function decode(text, size) {
  const mask = new Uint8Array(size);
  let at = 0, inside = 0;
  for (const length of text ? text.split(",") : []) {
    if (inside) mask.fill(1, at, at + Number(length));
    at += Number(length);
    inside = 1 - inside;
  }
  if (inside) mask.fill(1, at);
  return mask;
}

function dice(prediction, truth) {
  let hits = 0, total = 0;
  for (let i = 0; i < truth.length; i++) { hits += prediction[i] & truth[i]; total += prediction[i] + truth[i]; }
  return total ? 2 * hits / total : NaN;
}

/** TP, FP and FN as a canvas of the slice's own pixels. */
function disagreement(prediction, truth, width, height) {
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const context = canvas.getContext("2d"), picture = context.createImageData(width, height);
  for (let i = 0; i < truth.length; i++) {
    if (!prediction[i] && !truth[i]) continue;
    const colour = prediction[i] ? (truth[i] ? HIT : EXTRA) : MISSED;
    picture.data.set([...colour, 150], 4 * i);
  }
  context.putImageData(picture, 0, 0);
  return canvas;
}

/** Path along the edges of the pixels of a mask. */
function outline(mask, width, height) {
  const path = new Path2D(), at = (x, y) => x >= 0 && y >= 0 && x < width && y < height && mask[y * width + x];
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      if (!mask[y * width + x]) continue;
      if (!at(x, y - 1)) { path.moveTo(x, y); path.lineTo(x + 1, y); }
      if (!at(x, y + 1)) { path.moveTo(x, y + 1); path.lineTo(x + 1, y + 1); }
      if (!at(x - 1, y)) { path.moveTo(x, y); path.lineTo(x, y + 1); }
      if (!at(x + 1, y)) { path.moveTo(x + 1, y); path.lineTo(x + 1, y + 1); }
    }
  }
  return path;
}

class Viewer {
  constructor(element, data) {
    this.element = element;
    this.data = data;
    this.pictures = new Map();
    this.state = { organ: data.cases[0].organ, place: data.cases[0].place, mode: "map", zoom: "organ" };
    this.range = element.querySelector("input");
    this.range.addEventListener("input", () => this.draw());
    element.hidden = false;
    this.buttons("organ", [...new Set(data.cases.map(c => c.organ))].map(o => [o, o]));
    this.buttons("mode", Object.entries(MODES));
    this.buttons("zoom", [["organ", "around the organ"], ["slice", "whole slice"]]);
    this.open();
    new ResizeObserver(() => this.draw()).observe(element);
  }

  get case() { return this.data.cases.find(c => c.organ === this.state.organ && c.place === this.state.place); }

  buttons(key, choices) {
    const box = this.element.querySelector(`[data-key=${key}]`);
    box.replaceChildren(...choices.map(([value, text]) => {
      const button = Object.assign(document.createElement("button"), { type: "button", textContent: text });
      button.setAttribute("aria-pressed", this.state[key] === value);
      button.addEventListener("click", () => {
        this.state[key] = value;
        for (const other of box.children) other.setAttribute("aria-pressed", other === button);
        if (key === "organ" || key === "place") this.open(); else this.draw();
      });
      return button;
    }));
  }

  /** Another scan: its panels, and the slice where the organ is largest. */
  open() {
    const places = this.data.cases.filter(c => c.organ === this.state.organ);
    if (!this.case) this.state.place = places[0].place;
    this.buttons("place", places.map(c => [c.place, `${c.place} (scan ${c.scan})`]));
    const shown = this.case, [width, height] = shown.size;
    this.element.querySelector("a.planes").href = encodeURI(shown.planes);
    const all = [shown.truth, ...shown.predictions.map(p => p.runs)];
    this.masks = all.map(slices => slices.map(runs => decode(runs, width * height)));  // the truth first
    const areas = this.masks[0].map(mask => mask.reduce((sum, one) => sum + one, 0));
    Object.assign(this.range, { min: shown.first, max: shown.first + shown.slices - 1 });
    this.range.value = shown.first + areas.indexOf(Math.max(...areas));
    const panels = ["truth", ...shown.predictions.map(p => p.label)].map(label => {
      const figure = document.createElement("figure"), caption = document.createElement("figcaption");
      caption.append(Object.assign(document.createElement("b"), { textContent: label }), document.createElement("span"));
      figure.append(document.createElement("canvas"), caption);
      return figure;
    });
    this.element.querySelector(".panels").replaceChildren(...panels);
    this.draw();
  }

  async picture(z) {
    const source = this.data.images[this.case.image][z];
    if (!this.pictures.has(source)) {
      const image = new Image();
      image.src = source;
      this.pictures.set(source, image.decode().then(() => image));
    }
    return this.pictures.get(source);
  }

  async draw() {
    const shown = this.case, z = Number(this.range.value), { mode, zoom } = this.state;
    this.element.querySelector("output").textContent = `${z + 1} of ${shown.depth}`;
    this.legend(mode);
    const image = await this.picture(z);
    if (shown !== this.case || z !== Number(this.range.value)) return;  // overtaken by a later choice
    const [width, height] = shown.size, [x0, x1, y0, y1] = zoom === "organ" ? shown.crop : [0, width, 0, height];
    const truth = this.masks[0][z - shown.first];
    this.element.querySelectorAll(".panels figure").forEach((figure, at) => {
      const canvas = figure.querySelector("canvas"), mask = this.masks[at][z - shown.first];
      const across = Math.round(canvas.clientWidth * Math.min(devicePixelRatio, 2)) || 300;
      const ratio = (y1 - y0) * shown.pixel[1] / ((x1 - x0) * shown.pixel[0]);
      Object.assign(canvas, { width: across, height: Math.round(across * ratio) });
      const context = canvas.getContext("2d");
      const scale = [canvas.width / (x1 - x0), canvas.height / (y1 - y0)];
      context.setTransform(scale[0], 0, 0, scale[1], -x0 * scale[0], -y0 * scale[1]);
      context.imageSmoothingQuality = "high";
      context.drawImage(image, 0, 0, width, height);
      if (mode === "map" && at) {
        context.imageSmoothingEnabled = false;
        context.drawImage(disagreement(mask, truth, width, height), 0, 0);
      } else if (mode !== "none") {
        context.lineWidth = 2 * Math.min(devicePixelRatio, 2) / scale[0];
        this.stroke(context, truth, TRUTH, width, height);
        if (at) this.stroke(context, mask, PREDICTION, width, height);
      }
      figure.querySelector("span").textContent = at ? this.text(shown.predictions[at - 1], mask, truth) : "annotation";
    });
    this.element.dataset.drawn = `${shown.organ} ${shown.place} ${z} ${mode} ${zoom}`;
  }

  stroke(context, mask, colour, width, height) {
    context.strokeStyle = colour;
    context.stroke(outline(mask, width, height));
  }

  text(prediction, mask, truth) {
    const here = dice(mask, truth);
    return `${this.data.score} ${prediction.score.toFixed(this.data.digits)}; Dice of this slice ${Number.isNaN(here) ? "–" : here.toFixed(3)}`;
  }

  legend(mode) {
    this.element.querySelector(".legend").replaceChildren(...LEGENDS[mode].map(([text, colour]) => {
      const entry = document.createElement("span"), mark = document.createElement("i");
      if (Array.isArray(colour)) mark.style.background = `rgb(${colour})`;
      else { mark.className = "line"; mark.style.borderColor = colour; }
      entry.append(mark, text);
      return entry;
    }));
  }
}

const data = JSON.parse(document.getElementById("overlays").textContent);
document.querySelectorAll("section.dataset").forEach(section => {
  const shown = data[section.dataset.index];
  if (shown) new Viewer(section.querySelector(".viewer"), shown);
  section.querySelectorAll(".scores button").forEach(button => button.addEventListener("click", () => {
    section.querySelectorAll(".scores button").forEach(b => b.setAttribute("aria-pressed", b === button));
    section.querySelectorAll(".view").forEach(view => { view.hidden = view.dataset.score !== button.dataset.score; });
  }));
});
