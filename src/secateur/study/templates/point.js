"use strict";
// Point at a curve, or walk along it with the arrow keys, and read it. Without this script the
// points keep their titles.
for (const figure of document.querySelectorAll("figure.curves")) {
  const svg = figure.querySelector("svg");
  const readout = figure.querySelector(".readout");
  const curves = [...svg.querySelectorAll(".curve")].map(
    (curve) => [...curve.querySelectorAll(".point")]);
  const points = curves.flat();
  const hint = readout.textContent;
  const show = (point) => {
    for (const other of points) other.classList.toggle("on", other === point);
    readout.classList.toggle("on", Boolean(point));
    readout.textContent = point ? point.getAttribute("aria-label") : hint;
  };
  const nearest = (among, x, y) => {
    let best = null, least = Infinity;
    for (const point of among) {
      const box = point.querySelector(".dot").getBoundingClientRect();
      const far = Math.hypot(box.x + box.width / 2 - x, box.y + box.height / 2 - y);
      if (far < least) { least = far; best = point; }
    }
    return least < 60 ? best : null;
  };
  svg.addEventListener("pointermove", (event) => show(nearest(points, event.clientX, event.clientY)));
  svg.addEventListener("pointerdown", (event) => show(nearest(points, event.clientX, event.clientY)));
  svg.addEventListener("pointerleave", () => show(points.find((p) => p === document.activeElement)));
  svg.addEventListener("focusin", (event) => show(event.target.closest(".point")));
  svg.addEventListener("focusout", () => show(null));
  svg.addEventListener("keydown", (event) => {
    const row = curves.findIndex((curve) => curve.includes(event.target));
    if (row < 0) return;
    const at = curves[row].indexOf(event.target);
    const step = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
    const [across, along] = step[event.key] ?? [0, 0];
    if (!across && !along) return;
    event.preventDefault();
    const curve = curves[Math.min(Math.max(row + across, 0), curves.length - 1)];
    const next = curve[Math.min(Math.max(at + along, 0), curve.length - 1)];
    for (const point of curve) point.tabIndex = point === next ? 0 : -1;
    next.focus();
  });
}
