// Charts are static until they come into view; then vega-embed makes them interactive.
const views = new Map();

async function enliven(figure) {
  const drawing = figure.querySelector(".drawing");
  const spec = JSON.parse(figure.querySelector("script").textContent);
  const label = drawing.querySelector("svg").getAttribute("aria-label");
  const stage = document.createElement("div");
  const words = figure.querySelector(".readout");
  const tooltip = (_, event, item, value) => words && (words.textContent = phrase(value));
  const { view } = await vegaEmbed(stage, spec, { renderer: "svg", actions: false, tooltip });
  const svg = stage.querySelector("svg");
  svg.removeAttribute("width");
  svg.removeAttribute("height");
  stage.setAttribute("aria-hidden", "true");
  drawing.setAttribute("role", "img");
  drawing.setAttribute("aria-label", label);
  drawing.replaceChildren(stage);
  views.set(figure.dataset.chart, view);
  figure.dataset.live = "yes";
  if (figure.dataset.chart.startsWith("trade-off")) {
    view.addEventListener("pointermove", (event, item) => item?.datum?.name && pick(item.datum.name));
  }
}

/** What a tooltip holds, as a line of text. */
function phrase(value) {
  return Object.entries(value ?? {}).map(([name, text]) => `${name}: ${text}`).join(", ");
}

const observer = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    if (!isIntersecting) continue;
    observer.unobserve(target);
    enliven(target);
  }
});
if (window.vegaEmbed) {
  for (const figure of document.querySelectorAll("figure[data-chart]")) observer.observe(figure);
}

// One candidate is picked in the curves, in the list and in words.
function pick(name) {
  const readout = document.querySelector(".trade-off .readout");
  readout.textContent = name;
  for (const row of document.querySelectorAll("[data-candidate]")) {
    const own = row.dataset.candidate === name;
    row.classList.toggle("picked", own);
    if (own) {
      const [top1, size, latency] = Array.from(row.cells).slice(1).map((cell) => cell.firstChild.data);
      readout.textContent = `${name}: ${top1} %, ${size}, ${latency} ms`;
    }
  }
  for (const [chart, view] of views) {
    if (chart.startsWith("trade-off")) view.signal("picked", name).run();
  }
}
for (const row of document.querySelectorAll("[data-candidate]")) {
  const own = () => pick(row.dataset.candidate);
  row.addEventListener("click", own);
  row.addEventListener("focusin", own);
  row.addEventListener("pointermove", own); // pointerenter also follows scrolling
}

// The drawing of the network: one layer is read at a time; arrow keys move.
const layers = Array.from(document.querySelectorAll(".layer"));
const readout = document.getElementById("layer-readout");
const read = (layer) => (readout.textContent = layer.getAttribute("aria-label"));
layers.forEach((layer, index) => {
  layer.addEventListener("pointerenter", () => read(layer));
  layer.addEventListener("focus", () => read(layer));
  layer.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 }[event.key];
    const next = step && layers[index + step];
    if (!next) return;
    event.preventDefault();
    layer.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  });
});
for (const input of document.querySelectorAll("input[name=shade]")) {
  input.addEventListener("change", () => {
    document.querySelector(".network").classList.toggle("by-time", input.value === "time" && input.checked);
  });
}
