/* Lets the reader point at the front's drawing and enlarge it. The page draws the front itself; without this
   script, and on paper, it stays as it is. */
(function () {
  "use strict";
  var everything = JSON.parse(document.getElementById("front-data").textContent);

  var REACH = 28;      // pixels from a point within which it is meant
  var LEAST_DRAG = 8;  // pixels; less was a click

  function plot(place, data) {
    var points = data.beaten.concat(data.outside, data.baseline, data.front);
    var whole = data.view, view = whole, shown = null, dragFrom = null;
    var chart = place.querySelector("svg"), area = chart.querySelector(".area"), rules = chart.querySelector(".rules");
    var wholeRules = rules.innerHTML;
    var marks = Array.from(chart.querySelectorAll(".mark"), function (mark) {
      return { element: mark, across: parseFloat(mark.getAttribute("x")), down: parseFloat(mark.getAttribute("y")) };
    });
    var band = document.createElement("div"), tip = document.createElement("div");

    function share(value, axis) { return (value - view[axis][0]) / (view[axis][1] - view[axis][0]); }

    function pixel(point) {
      return [share(point[0], 0) * place.clientWidth, (1 - share(point[1], 1)) * place.clientHeight];
    }

    function here(event) {
      var box = place.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top];
    }

    function ticks(axis, most) {
      var range = view[axis], raw = (range[1] - range[0]) / most, unit = Math.pow(10, Math.floor(Math.log10(raw)));
      var step = [1, 2, 5, 10].map(function (k) { return k * unit; }).find(function (s) { return s >= raw * 0.999; });
      var found = [];
      for (var k = Math.ceil(range[0] / step - 1e-9); k * step <= range[1] + step * 1e-9; k += 1) {
        found.push(Number((k * step).toPrecision(12)));
      }
      return found;
    }

    function partRules() {
      return ticks(0, 6).map(function (tick) {
        var x = 100 * share(tick, 0) + "%";
        return '<line class="grid" x1="' + x + '" x2="' + x + '" y2="100%"/>' +
          '<text class="tick" x="' + x + '" y="100%" dy="16" text-anchor="middle">' + tick + "</text>";
      }).join("") + ticks(1, 5).map(function (tick) {
        var y = 100 - 100 * share(tick, 1) + "%";
        return '<line class="grid" x2="100%" y1="' + y + '" y2="' + y + '"/>' +
          '<text class="tick" y="' + y + '" dx="-6" dy="4" text-anchor="end">' + tick + "</text>";
      }).join("");
    }

    function enlarge(range) {
      view = range;
      var box = [0, 1].map(function (axis) {  // of the whole, in percent: where the part begins, its size
        var size = whole[axis][1] - whole[axis][0];
        var start = axis ? whole[1][1] - view[1][1] : view[0][0] - whole[0][0];
        return [100 * start / size, 100 * (view[axis][1] - view[axis][0]) / size];
      });
      area.setAttribute("viewBox", [box[0][0], box[1][0], box[0][1], box[1][1]].join(" "));
      rules.innerHTML = view === whole ? wholeRules : partRules();
      chart.classList.toggle("part", view !== whole);
      marks.forEach(function (mark) {
        var x = 100 * (mark.across - box[0][0]) / box[0][1], y = 100 * (mark.down - box[1][0]) / box[1][1];
        mark.element.setAttribute("x", x + "%");
        mark.element.setAttribute("y", y + "%");
        mark.element.classList.toggle("away", x < 0 || x > 100 || y < 0 || y > 100);
      });
    }

    function nearest(at) {
      var best = null, least = REACH * REACH;
      points.forEach(function (point) {
        var across = share(point[0], 0), up = share(point[1], 1), spot = pixel(point);
        var far = Math.pow(spot[0] - at[0], 2) + Math.pow(spot[1] - at[1], 2);
        // Of two points that lie alike the later one counts: the front's.
        if (far <= least && Math.min(across, up) >= 0 && Math.max(across, up) <= 1) { least = far; best = point; }
      });
      return best;
    }

    function tell(point) {
      tip.hidden = !point;
      if (!point) { return; }
      tip.textContent = "";
      everything.words[point[2]].forEach(function (line) {
        tip.appendChild(document.createElement("div")).textContent = line;
      });
      var x = pixel(point)[0], y = pixel(point)[1];
      tip.style.left = Math.max(4, Math.min(x + 14, place.clientWidth - tip.offsetWidth - 4)) + "px";
      tip.style.top = (y > tip.offsetHeight + 24 ? y - tip.offsetHeight - 14 : y + 16) + "px";
    }

    function corners(to) {  // of the rectangle that the mouse has dragged over
      return [0, 1].map(function (axis) { return [dragFrom[axis], to[axis]].sort(function (a, b) { return a - b; }); });
    }

    function showBand(to) {
      var sides = corners(to);
      band.hidden = false;
      band.style.left = sides[0][0] + "px";
      band.style.top = sides[1][0] + "px";
      band.style.width = sides[0][1] - sides[0][0] + "px";
      band.style.height = sides[1][1] - sides[1][0] + "px";
    }

    function endDrag(event) {
      if (!dragFrom) { return; }
      var sides = corners(here(event));
      dragFrom = null;
      band.hidden = true;
      if (sides.some(function (side) { return side[1] - side[0] < LEAST_DRAG; })) { return; }
      function value(at, axis) {
        var part = axis ? 1 - at / place.clientHeight : at / place.clientWidth;
        return view[axis][0] + part * (view[axis][1] - view[axis][0]);
      }
      enlarge([sides[0].map(function (x) { return value(x, 0); }),
        sides[1].map(function (y) { return value(y, 1); }).reverse()]);
    }

    function walk(event) {
      var step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (event.key === "Escape") { tell(null); enlarge(whole); }
      if (!step || !data.front.length) { return; }
      event.preventDefault();
      if (shown === null) { shown = step > 0 ? -1 : 0; }
      shown = (shown + step + data.front.length) % data.front.length;
      tell(data.front[shown]);
    }

    place.addEventListener("pointerdown", function (event) {
      if (event.pointerType === "mouse" && event.button === 0) { dragFrom = here(event); event.preventDefault(); }
      tell(nearest(here(event)));
    });
    place.addEventListener("pointermove", function (event) {
      if (dragFrom) { showBand(here(event)); }
      tell(dragFrom ? null : nearest(here(event)));
    });
    window.addEventListener("pointerup", endDrag);
    place.addEventListener("pointerleave", function (event) { if (event.pointerType === "mouse") { tell(null); } });
    place.addEventListener("dblclick", function () { enlarge(whole); });
    place.addEventListener("keydown", walk);
    window.addEventListener("resize", function () { tell(null); });
    window.addEventListener("beforeprint", function () { tell(null); enlarge(whole); });

    place.tabIndex = 0;
    place.setAttribute("role", "group");
    place.setAttribute("aria-label", data.up + " against " + data.across + ": arrow keys go along the front");
    band.className = "band";
    tip.className = "tip";
    tip.setAttribute("role", "status");
    band.hidden = tip.hidden = true;
    place.append(band, tip);
    place.parentElement.classList.add("drawn");
  }

  document.querySelectorAll(".front-plot").forEach(function (place) {
    plot(place, everything.planes[Number(place.dataset.plane)]);
  });
  document.documentElement.dataset.drawnAt = performance.now();
  document.documentElement.dataset.drawn = "yes";
})();
