/* Draws the front anew at the width there is, as something to point at and to enlarge. The still drawing that
   it replaces serves readers without scripts, and paper. Colours come from the style sheet by class name. */
(function () {
  "use strict";
  var given = document.getElementById("front-data");
  var everything = JSON.parse(given.textContent);

  var NAMESPACE = "http://www.w3.org/2000/svg";
  var REACH = 28;      // pixels from a point within which it is meant
  var LEAST_DRAG = 8;  // pixels; less was a click

  function plot(place, data) {
    var cutName = "front-cut-" + place.dataset.plane;
    var points = data.beaten.concat(data.outside, data.baseline, data.front);
    var whole = { across: span(0), up: span(1) };
    var view = whole;
    var tip = document.createElement("div");
    var frame, picture, scaleX, scaleY, drawnWidth, shown = null, dragFrom = null;

    function span(axis) {
      var values = points.map(function (point) { return point[axis]; });
      data.intervals.forEach(function (pair) { if (pair[axis]) { values = values.concat(pair[axis]); } });
      var low = Math.min.apply(null, values), high = Math.max.apply(null, values);
      var air = (high - low) * 0.06 || Math.abs(low) * 0.1 || 1;
      return [low - air, high + air];
    }

    function scale(range, start, end) {
      return function (value) { return start + (value - range[0]) / (range[1] - range[0]) * (end - start); };
    }

    function ticks(range, most) {
      var raw = (range[1] - range[0]) / most, unit = Math.pow(10, Math.floor(Math.log10(raw)));
      var step = [1, 2, 5, 10].map(function (k) { return k * unit; }).find(function (s) { return s >= raw * 0.999; });
      var found = [];
      for (var k = Math.ceil(range[0] / step - 1e-9); k * step <= range[1] + step * 1e-9; k += 1) {
        found.push(Number((k * step).toPrecision(12)));
      }
      return found;
    }

    function add(parent, name, attributes, words) {
      var made = document.createElementNS(NAMESPACE, name);
      Object.keys(attributes).forEach(function (key) { made.setAttribute(key, attributes[key]); });
      if (words !== undefined) { made.textContent = words; }
      parent.appendChild(made);
      return made;
    }

    function pixel(point) { return [scaleX(point[0]).toFixed(1), scaleY(point[1]).toFixed(1)]; }

    function dots(inside, group, kind, radius) {
      var path = group.map(function (point) { return "M" + pixel(point).join(" ") + "h0"; }).join("");
      if (path) { add(inside, "path", { "class": "dots " + kind, "stroke-width": 2 * radius, d: path }); }
    }

    function crosses(inside, group, kind) {
      var path = group.map(function (point) { return "M" + pixel(point).join(" ") + "m-3 -3l6 6m0 -6l-6 6"; }).join("");
      if (path) { add(inside, "path", { "class": "line " + kind, d: path }); }
    }

    function steps(inside) {
      var path = data.stairs.map(function (point, index) {
        var at = pixel(point);
        if (!index) { return "M" + at.join(" "); }
        return data.late ? "H" + at[0] + "V" + at[1] : "V" + at[1] + "H" + at[0];
      }).join("");
      if (path) { add(inside, "path", { "class": "line front", d: path }); }
    }

    function intervals(inside) {
      var path = data.front.map(function (point, index) {
        var at = pixel(point), pair = data.intervals[index];
        return (pair[0] ? "M" + scaleX(pair[0][0]) + " " + at[1] + "H" + scaleX(pair[0][1]) : "") +
          (pair[1] ? "M" + at[0] + " " + scaleY(pair[1][0]) + "V" + scaleY(pair[1][1]) : "");
      }).join("");
      if (path) { add(inside, "path", { "class": "line front", d: path }); }
    }

    function sign(inside, kind, point, r) {
      var at = pixel(point), x = Number(at[0]), y = Number(at[1]);
      var corners = {
        fastest: [[0, -1], [1, 0.7], [-1, 0.7]],
        greenest: [[0, 1], [1, -0.7], [-1, -0.7]],
        knee: [[0, -1], [1, 0], [0, 1], [-1, 0]],
        baseline: [[-1, -1], [1, -1], [1, 1], [-1, 1]]
      }[kind];
      if (!corners) { add(inside, "circle", { "class": "ring " + kind, cx: x, cy: y, r: r * 1.3 }); return; }
      var path = corners.map(function (corner) { return (x + r * corner[0]) + " " + (y + r * corner[1]); });
      add(inside, "path", { "class": "ring " + kind, d: "M" + path.join("L") + "Z" });
    }

    function rules(width, bottom, left) {
      ticks(view.across, width < 500 ? 4 : 7).forEach(function (tick) {
        var x = scaleX(tick);
        add(picture, "path", { "class": "grid", d: "M" + x + " " + frame.top + "V" + bottom });
        add(picture, "text", { "class": "tick", x: x, y: bottom + 16, "text-anchor": "middle" }, String(tick));
      });
      ticks(view.up, 6).forEach(function (tick) {
        var y = scaleY(tick);
        add(picture, "path", { "class": "grid", d: "M" + left + " " + y + "H" + frame.right });
        add(picture, "text", { "class": "tick", x: left - 6, y: y + 4, "text-anchor": "end" }, String(tick));
      });
    }

    function draw() {
      var width = place.clientWidth, height = place.clientHeight;
      frame = { left: 62, right: width - 12, top: 12, bottom: height - 46 };
      scaleX = scale(view.across, frame.left, frame.right);
      scaleY = scale(view.up, frame.bottom, frame.top);
      if (picture) { picture.remove(); }
      picture = document.createElementNS(NAMESPACE, "svg");
      picture.setAttribute("viewBox", "0 0 " + width + " " + height);
      picture.setAttribute("aria-hidden", "true");
      rules(width, frame.bottom, frame.left);
      add(picture, "text", { x: (frame.left + width) / 2, y: height - 8, "text-anchor": "middle" }, data.across);
      var turned = "translate(14 " + (frame.top + frame.bottom) / 2 + ") rotate(-90)";
      add(picture, "text", { transform: turned, "text-anchor": "middle" }, data.up);
      var cut = add(add(picture, "defs", {}), "clipPath", { id: cutName });
      var air = view === whole ? 12 : 0;  // for marks at the edge; of a part only what lies in it
      add(cut, "rect", {
        x: frame.left - air, y: frame.top - air,
        width: frame.right - frame.left + 2 * air, height: frame.bottom - frame.top + 2 * air
      });
      var inside = add(picture, "g", { "clip-path": "url(#" + cutName + ")" });
      dots(inside, data.beaten, "beaten", 3);
      crosses(inside, data.outside, "outside");
      steps(inside);
      intervals(inside);
      dots(inside, data.front, "front", 4.5);
      data.baseline.forEach(function (point) { sign(inside, "baseline", point, 8); });
      data.picks.forEach(function (pick) { sign(inside, pick.kind, pick.at, 9); });
      place.insertBefore(picture, tip);
      drawnWidth = width;
    }

    function within(point) {
      var x = scaleX(point[0]), y = scaleY(point[1]);
      return x >= frame.left - 1 && x <= frame.right + 1 && y >= frame.top - 1 && y <= frame.bottom + 1;
    }

    function nearest(x, y) {
      var best = null, least = REACH * REACH;
      points.forEach(function (point) {
        var far = Math.pow(scaleX(point[0]) - x, 2) + Math.pow(scaleY(point[1]) - y, 2);
        if (far <= least && within(point)) { least = far; best = point; }  // of two alike the later: the front's
      });
      return best;
    }

    function tell(point) {
      tip.hidden = !point;
      if (!point) { return; }
      tip.textContent = "";
      everything.words[point[2]].forEach(function (line) {
        var row = document.createElement("div");
        row.textContent = line;
        tip.appendChild(row);
      });
      var x = scaleX(point[0]), y = scaleY(point[1]), room = place.clientWidth - tip.offsetWidth - 4;
      tip.style.left = Math.max(4, Math.min(x + 14, room)) + "px";
      tip.style.top = (y > tip.offsetHeight + 24 ? y - tip.offsetHeight - 14 : y + 16) + "px";
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

    function here(event) {
      var box = place.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top];
    }

    function enlarge(range) { view = range; draw(); }

    function dragged(from, to) {
      function range(scaled, axis, start, end) {
        var a = Math.min(from[axis], to[axis]), b = Math.max(from[axis], to[axis]);
        function back(at) { return scaled[0] + (at - start) / (end - start) * (scaled[1] - scaled[0]); }
        return [back(a), back(b)].sort(function (one, other) { return one - other; });
      }
      return {
        across: range(view.across, 0, frame.left, frame.right),
        up: range(view.up, 1, frame.bottom, frame.top)
      };
    }

    function band(to) {
      var old = picture.querySelector(".band");
      if (old) { old.remove(); }
      if (!to) { return; }
      add(picture, "rect", {
        "class": "band",
        x: Math.min(dragFrom[0], to[0]), y: Math.min(dragFrom[1], to[1]),
        width: Math.abs(to[0] - dragFrom[0]), height: Math.abs(to[1] - dragFrom[1])
      });
    }

    place.addEventListener("pointerdown", function (event) {
      if (event.pointerType === "mouse" && event.button === 0) { dragFrom = here(event); event.preventDefault(); }
      tell(nearest.apply(null, here(event)));
    });
    place.addEventListener("pointermove", function (event) {
      if (dragFrom) { band(here(event)); }
      tell(dragFrom ? null : nearest.apply(null, here(event)));
    });
    window.addEventListener("pointerup", function (event) {
      if (!dragFrom) { return; }
      var from = dragFrom, to = here(event);
      band(null);
      dragFrom = null;
      if (Math.min(Math.abs(to[0] - from[0]), Math.abs(to[1] - from[1])) >= LEAST_DRAG) { enlarge(dragged(from, to)); }
    });
    place.addEventListener("pointerleave", function (event) { if (event.pointerType === "mouse") { tell(null); } });
    place.addEventListener("dblclick", function () { enlarge(whole); });

    place.hidden = false;
    place.tabIndex = 0;
    place.setAttribute("role", "group");
    place.setAttribute("aria-label", data.up + " against " + data.across + ": arrow keys go along the front");
    place.addEventListener("keydown", walk);
    tip.className = "tip";
    tip.hidden = true;
    tip.setAttribute("role", "status");
    place.appendChild(tip);
    place.parentElement.classList.add("drawn");
    draw();
    new ResizeObserver(function () {
      if (place.clientWidth && place.clientWidth !== drawnWidth) { tell(null); draw(); }  // none on paper
    }).observe(place);
  }

  document.querySelectorAll(".front-plot").forEach(function (place) {
    plot(place, everything.planes[Number(place.dataset.plane)]);
  });
  document.documentElement.dataset.drawnAt = performance.now();
  document.documentElement.dataset.drawn = "yes";
})();
