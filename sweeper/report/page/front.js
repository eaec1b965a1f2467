/* Lets the reader point at the front's drawing and enlarge it. The page draws the front itself; without this
   script, and on paper, it stays as it is. */
(() => {
  "use strict";
  const everything = JSON.parse(document.getElementById("front-data").textContent);
  const REACH = 28;      // pixels from a point within which it is meant
  const LEAST_DRAG = 8;  // pixels; less was a click

  function ticks([low, high], most) {
    const raw = (high - low) / most, unit = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map((k) => k * unit).find((s) => s >= raw * 0.999);
    const first = Math.ceil(low / step - 1e-9), last = Math.floor(high / step + 1e-9);
    return Array.from({ length: last - first + 1 }, (_, k) => Number(((first + k) * step).toPrecision(12)));
  }

  function plot(place, data) {
    const points = data.beaten.concat(data.outside, data.baseline, data.front), whole = data.view;
    const chart = place.querySelector("svg"), area = chart.querySelector(".area"), rules = chart.querySelector(".rules");
    const wholeRules = rules.innerHTML;
    const marks = Array.from(chart.querySelectorAll(".mark"), (element) => (
      { element, across: parseFloat(element.getAttribute("x")), down: parseFloat(element.getAttribute("y")) }));
    const band = document.createElement("div"), tip = document.createElement("div");
    let view = whole, shown = null, dragFrom = null;

    const share = (value, axis) => (value - view[axis][0]) / (view[axis][1] - view[axis][0]);
    const pixel = (point) => [share(point[0], 0) * place.clientWidth, (1 - share(point[1], 1)) * place.clientHeight];

    function here(event) {
      const box = place.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top];
    }

    function partRules() {
      const across = ticks(view[0], 6).map((tick) => {
        const x = `${100 * share(tick, 0)}%`;
        return `<line class="grid" x1="${x}" x2="${x}" y2="100%"/>` +
          `<text class="tick" x="${x}" y="100%" dy="16" text-anchor="middle">${tick}</text>`;
      });
      const up = ticks(view[1], 5).map((tick) => {
        const y = `${100 - 100 * share(tick, 1)}%`;
        return `<line class="grid" x2="100%" y1="${y}" y2="${y}"/>` +
          `<text class="tick" y="${y}" dx="-6" dy="4" text-anchor="end">${tick}</text>`;
      });
      return across.concat(up).join("");
    }

    function enlarge(range) {
      view = range;
      const [across, down] = [0, 1].map((axis) => {  // of the whole, in percent: where the part begins, its size
        const size = whole[axis][1] - whole[axis][0];
        const start = axis ? whole[1][1] - view[1][1] : view[0][0] - whole[0][0];
        return [100 * start / size, 100 * (view[axis][1] - view[axis][0]) / size];
      });
      area.setAttribute("viewBox", [across[0], down[0], across[1], down[1]].join(" "));
      rules.innerHTML = view === whole ? wholeRules : partRules();
      chart.classList.toggle("part", view !== whole);
      for (const mark of marks) {
        const x = 100 * (mark.across - across[0]) / across[1], y = 100 * (mark.down - down[0]) / down[1];
        mark.element.setAttribute("x", `${x}%`);
        mark.element.setAttribute("y", `${y}%`);
        mark.element.classList.toggle("away", Math.min(x, y) < 0 || Math.max(x, y) > 100);
      }
    }

    function nearest(at) {
      let best = null, least = REACH;
      for (const point of points) {
        const [x, y] = pixel(point), far = Math.hypot(x - at[0], y - at[1]);
        const isInside = x >= 0 && y >= 0 && x <= place.clientWidth && y <= place.clientHeight;
        // Of two points that lie alike the later one counts: the front's.
        if (far <= least && isInside) { least = far; best = point; }
      }
      return best;
    }

    function tell(point) {
      tip.hidden = !point;
      if (!point) { return; }
      tip.textContent = "";
      for (const line of everything.words[point[2]]) {
        tip.appendChild(document.createElement("div")).textContent = line;
      }
      const [x, y] = pixel(point);
      tip.style.left = `${Math.max(4, Math.min(x + 14, place.clientWidth - tip.offsetWidth - 4))}px`;
      tip.style.top = `${y > tip.offsetHeight + 24 ? y - tip.offsetHeight - 14 : y + 16}px`;
    }

    // The sides of the rectangle that the mouse has dragged over: [left, right] and [top, bottom].
    const sides = (to) => [0, 1].map((axis) => [dragFrom[axis], to[axis]].sort((a, b) => a - b));

    function showBand(to) {
      const [[left, right], [top, bottom]] = sides(to);
      band.hidden = false;
      Object.assign(band.style, { left: `${left}px`, top: `${top}px`, width: `${right - left}px`, height: `${bottom - top}px` });
    }

    function endDrag(event) {
      if (!dragFrom) { return; }
      const [[left, right], [top, bottom]] = sides(here(event));
      dragFrom = null;
      band.hidden = true;
      if (Math.min(right - left, bottom - top) < LEAST_DRAG) { return; }
      const value = (part, axis) => view[axis][0] + part * (view[axis][1] - view[axis][0]);
      enlarge([[left, right].map((x) => value(x / place.clientWidth, 0)),
        [bottom, top].map((y) => value(1 - y / place.clientHeight, 1))]);
    }

    function walk(event) {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (event.key === "Escape") { tell(null); enlarge(whole); }
      if (!step || !data.front.length) { return; }
      event.preventDefault();
      if (shown === null) { shown = step > 0 ? -1 : 0; }
      shown = (shown + step + data.front.length) % data.front.length;
      tell(data.front[shown]);
    }

    place.addEventListener("pointerdown", (event) => {
      if (event.pointerType === "mouse" && event.button === 0) { dragFrom = here(event); event.preventDefault(); }
      tell(nearest(here(event)));
    });
    place.addEventListener("pointermove", (event) => {
      if (dragFrom) { showBand(here(event)); }
      tell(dragFrom ? null : nearest(here(event)));
    });
    place.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") { tell(null); } });
    place.addEventListener("dblclick", () => enlarge(whole));
    place.addEventListener("keydown", walk);
    window.addEventListener("pointerup", endDrag);
    window.addEventListener("resize", () => tell(null));
    window.addEventListener("beforeprint", () => { tell(null); enlarge(whole); });

    place.tabIndex = 0;
    place.setAttribute("role", "group");
    place.setAttribute("aria-label", `${data.up} against ${data.across}: arrow keys go along the front`);
    band.className = "band";
    tip.className = "tip";
    tip.setAttribute("role", "status");
    band.hidden = tip.hidden = true;
    place.append(band, tip);
    place.parentElement.classList.add("drawn");
  }

  for (const place of document.querySelectorAll(".front-plot")) {
    plot(place, everything.planes[Number(place.dataset.plane)]);
  }
  document.documentElement.dataset.drawn = "yes";
  // On paper every fold is open, but those that only a screen needs.
  window.addEventListener("beforeprint", () => {
    for (const fold of document.querySelectorAll("details:not(.screen)")) { fold.open = true; }
  });
})();
