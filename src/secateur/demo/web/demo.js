/** The demo page: an image comes in, and each network answers. */
import { crop, fit, normalize } from "./prepare.js";
import { Network } from "./network.js";

const SHOWN = 10;
const REPEATS = 7;
const $ = (id) => document.getElementById(id);
const board = $("board").getContext("2d", { willReadFrequently: true });

/** Show a network's answer in a panel of its own. */
class Panel {
  constructor({ title, network, classes }) {
    Object.assign(this, { network, classes });
    this.root = document.createElement("section");
    const heading = document.createElement("h2");
    heading.textContent = `${title}, ${bytes(network.bytes)}`;
    this.answer = Object.assign(document.createElement("p"), { className: "answer" });
    this.answer.setAttribute("aria-live", "polite");
    this.facts = Object.assign(document.createElement("p"), { className: "facts" });
    this.table = document.createElement("table");
    this.table.innerHTML =
      '<thead class="sr"><tr><th scope="col">Class</th><th scope="col">Probability</th>' +
      '<th scope="col">Bar</th></tr></thead><tbody></tbody>';
    this.root.append(heading, this.answer, this.facts, this.table);
    $("networks").append(this.root);
  }

  async show(tensor, repeats) {
    const { probabilities, milliseconds } = await this.network.classify(tensor, repeats);
    const ranked = probabilities.map((p, i) => ({ p, name: this.classes[i] }));
    ranked.sort((a, b) => b.p - a.p);
    this.answer.textContent = ranked[0].name;
    this.facts.textContent = `${percent(ranked[0].p)}, ${milliseconds.toFixed(1)} ms per image`;
    this.table.tBodies[0].replaceChildren(
      ...ranked.slice(0, SHOWN).map(({ p, name }, rank) => row(name, p, rank)),
    );
  }
}

function row(name, p, rank) {
  const line = document.createElement("tr");
  if (rank === 0) line.className = "best";
  const head = Object.assign(document.createElement("th"), { scope: "row", textContent: name });
  const value = Object.assign(document.createElement("td"), { textContent: percent(p) });
  const bar = Object.assign(document.createElement("td"), { className: "bar" });
  const meter = Object.assign(document.createElement("meter"), { value: p, max: 1 });
  meter.setAttribute("aria-label", `${name}, ${percent(p)}`);
  bar.append(meter);
  line.append(head, value, bar);
  return line;
}

const percent = (p) => `${(100 * p).toFixed(1)} %`;
const bytes = (n) => (n < 1e6 ? `${Math.round(n / 1e3)} kB` : `${(n / 1e6).toFixed(2)} MB`);

/** Prepare an image, show what the networks get, and let each answer. */
class Classifier {
  constructor(preparation, panels) {
    Object.assign(this, { preparation, panels, busy: false, waiting: undefined });
  }

  /** Classify the newest image; one that comes while another runs waits, and replaces others. */
  async classify(image, repeats = REPEATS) {
    this.waiting = { image, repeats };
    if (this.busy) return;
    this.busy = true;
    try {
      while (this.waiting) {
        const next = this.waiting;
        this.waiting = undefined;
        await this.answer(next);
      }
    } finally {
      this.busy = false;
    }
  }

  async answer({ image, repeats }) {
    const square = fit(image, this.preparation);
    const tensor = normalize(square, this.preparation);
    showPrepared(crop(square, this.preparation.resolution), this.preparation.resolution);
    for (const panel of this.panels) await panel.show(tensor, repeats);
    document.body.dataset.answered = String(Number(document.body.dataset.answered ?? 0) + 1);
  }
}

function showPrepared(planes, side) {
  const canvas = $("prepared");
  canvas.width = canvas.height = side;
  const image = new ImageData(side, side);
  for (let i = 0; i < side * side; i++) {
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = planes[c % planes.length][i];
    image.data[4 * i + 3] = 255;
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

/** Pixels of a file, video frame or canvas, on white where it is transparent. */
function pixels(source, width, height) {
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "#fff";
  context.fillRect(0, 0, width, height);
  context.drawImage(source, 0, 0, width, height);
  return context.getImageData(0, 0, width, height);
}

async function openFile(file, classifier) {
  try {
    const bitmap = await createImageBitmap(file, { colorSpaceConversion: "none" });
    const image = pixels(bitmap, bitmap.width, bitmap.height);
    showOnBoard(bitmap);
    await classifier.classify(image);
  } catch (error) {
    fail(`Cannot open ${file.name}: ${error.message}`);
  }
}

function showOnBoard(bitmap) {
  const side = Math.min(bitmap.width, bitmap.height);
  const [left, top] = [(bitmap.width - side) / 2, (bitmap.height - side) / 2];
  const { width } = board.canvas;
  board.imageSmoothingEnabled = side > width;
  clearBoard();
  board.drawImage(bitmap, left, top, side, side, 0, 0, width, width);
}

function clearBoard() {
  board.fillStyle = "#000";
  board.fillRect(0, 0, board.canvas.width, board.canvas.height);
}

/** Draw with the pointer; each stroke is classified. */
function enableDrawing(classifier) {
  const { canvas } = board;
  let last;
  const place = (event) => {
    const box = canvas.getBoundingClientRect();
    return [event.clientX - box.x, event.clientY - box.y].map((v) => (v * canvas.width) / box.width);
  };
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    last = place(event);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!last) return;
    const next = place(event);
    Object.assign(board, { strokeStyle: "#fff", lineWidth: 18, lineCap: "round" });
    board.beginPath();
    board.moveTo(...last);
    board.lineTo(...next);
    board.stroke();
    last = next;
    classifier.classify(board.getImageData(0, 0, canvas.width, canvas.height), 1);
  });
  const stop = () => (last = undefined);
  canvas.addEventListener("pointerup", stop);
  canvas.addEventListener("pointercancel", stop);
}

function enableDropping(classifier) {
  const area = $("drop");
  area.addEventListener("dragover", (event) => {
    event.preventDefault();
    area.classList.add("over");
  });
  area.addEventListener("dragleave", () => area.classList.remove("over"));
  area.addEventListener("drop", (event) => {
    event.preventDefault();
    area.classList.remove("over");
    const [file] = event.dataTransfer.files;
    if (file) openFile(file, classifier);
  });
  $("file").addEventListener("change", (event) => {
    const [file] = event.target.files;
    if (file) openFile(file, classifier);
  });
}

/** While the camera is on, its newest frame is classified. */
function enableCamera(classifier) {
  const [video, button] = [$("video"), $("camera")];
  const stop = () => {
    video.srcObject?.getTracks().forEach((track) => track.stop());
    video.srcObject = null;
    video.hidden = true;
    button.setAttribute("aria-pressed", "false");
  };
  const step = async () => {
    if (!video.srcObject) return;
    if (video.videoWidth) {
      await classifier.classify(pixels(video, video.videoWidth, video.videoHeight), 1);
    }
    requestAnimationFrame(step);
  };
  button.addEventListener("click", async () => {
    if (video.srcObject) return stop();
    try {
      video.srcObject = await navigator.mediaDevices.getUserMedia({ video: true });
      video.hidden = false;
      button.setAttribute("aria-pressed", "true");
      await video.play();
      step();
    } catch (error) {
      stop();
      fail(`No camera: ${error.message}`);
    }
  });
}

function fail(message) {
  $("status").textContent = message;
  $("status").className = "error";
}

async function start() {
  const { title, classes, preparation, networks } = await (await fetch("demo.json")).json();
  document.title = `${title} · Secateur demo`;
  $("title").textContent = title;
  const side = preparation.resolution;
  const shape = [1, preparation.mean.length, side, side];
  const panels = [];
  for (const { title, file } of networks) {
    panels.push(new Panel({ title, classes, network: await Network.open(file, shape) }));
  }
  $("prepared-caption").textContent = `What the network sees: ${side} × ${side} pixels, ${
    preparation.mean.length === 1 ? "gray" : "color"
  }`;
  const classifier = new Classifier(preparation, panels);
  enableDropping(classifier);
  enableDrawing(classifier);
  enableCamera(classifier);
  $("clear").addEventListener("click", clearBoard);
  clearBoard();
  $("status").textContent = "Runs in this page, offline, with onnxruntime-web (WebAssembly, 1 thread).";
  document.body.dataset.ready = "yes";
}

start().catch((error) => fail(`Cannot start: ${error.message}`));
