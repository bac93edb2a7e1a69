"use strict";
// The page reads without this script: it adds the choice of light or dark, and what a heat map's
// cell under the pointer, the finger or the arrow keys holds.
(() => {
  const root = document.documentElement;
  const button = document.getElementById("theme");
  const dark = () => root.dataset.theme
    ? root.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  const name = () => { button.textContent = dark() ? "Light page" : "Dark page"; };
  button.hidden = false;
  button.addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; name(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", name);
  name();

  for (const source of document.querySelectorAll("script[type='application/json'][data-heat]")) {
    heat(source.closest("figure"), JSON.parse(source.textContent));
  }

  function heat(figure, data) {
    const paper = figure.querySelector(".paper");
    const svg = paper.querySelector("svg");
    const place = document.createElement("div");
    place.className = "over";
    svg.replaceWith(place);
    place.append(svg);
    const mark = document.createElement("div");
    mark.className = "cell";
    mark.hidden = true;
    place.append(mark);
    const text = figure.querySelector(".readout");
    const hint = text.textContent;
    place.tabIndex = 0;
    place.setAttribute("role", "group");
    place.setAttribute("aria-label", svg.getAttribute("aria-label") + ". " + hint);
    for (const panel of data.panels) {
      const bytes = Uint8Array.from(atob(panel.cells), (c) => c.charCodeAt(0));
      const view = new DataView(bytes.buffer);
      panel.value = (row, column) => {
        const found = view.getInt16(2 * (row * data.times.length + column), true);
        return found === -32768 ? null : found * data.unit;
      };
    }
    let at = null;

    function show(panel, row, column) {
      const shape = data.panels[panel];
      const wide = data.times.length, high = shape.rows.length;
      at = { panel, row: Math.max(0, Math.min(high - 1, row)),
             column: Math.max(0, Math.min(wide - 1, column)) };
      const [left, top, width, height] = shape.box;
      mark.style.left = 100 * (left + (width * at.column) / wide) + "%";
      mark.style.top = 100 * (top + (height * at.row) / high) + "%";
      mark.style.width = (100 * width) / wide + "%";
      mark.style.height = (100 * height) / high + "%";
      mark.hidden = false;
      const value = shape.value(at.row, at.column);
      const said = value === null ? "no matched value"
        : `${value < 0 ? "−" : "+"}${Math.abs(value).toPrecision(3)}, ` +
          `${data.branch} is ${(2 ** value).toPrecision(4)} times ${data.to}`;
      text.textContent = `${/^\d+$/.test(shape.rows[at.row]) ? "layer " : ""}${shape.rows[at.row]}` +
        `${shape.module ? ", " + shape.module : ""}, ${data.times[at.column]}: ` +
        `log2 ratio of ${data.statistic} ${said}`;
    }

    function find(event) {
      const all = svg.getBoundingClientRect();
      const x = (event.clientX - all.left) / all.width, y = (event.clientY - all.top) / all.height;
      return data.panels.some((panel, i) => {
        const [left, top, width, height] = panel.box;
        if (x < left || x >= left + width || y < top || y >= top + height) return false;
        show(i, Math.floor(((y - top) / height) * panel.rows.length),
          Math.floor(((x - left) / width) * data.times.length));
        return true;
      });
    }

    place.addEventListener("pointermove", (event) => { if (event.pointerType === "mouse") find(event); });
    place.addEventListener("click", find);
    place.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
      const turn = { PageDown: 1, PageUp: -1 }[event.key];
      if (!step && !turn && event.key !== "Home" && event.key !== "End") return;
      event.preventDefault();
      if (!at) show(0, 0, 0);
      else if (turn) show((at.panel + turn + data.panels.length) % data.panels.length, at.row, at.column);
      else if (step) show(at.panel, at.row + step[0], at.column + step[1]);
      else show(at.panel, at.row, event.key === "Home" ? 0 : data.times.length - 1);
    });
    place.addEventListener("keydown", (event) => {
      if (event.key === "Escape") { mark.hidden = true; text.textContent = hint; at = null; }
    });
  }
})();
