/* Turns the still drawing of the front into one that can be pointed at. Without it the page is whole. */
(function () {
  "use strict";
  var place = document.getElementById("front-plot");
  var data = document.getElementById("front-data");
  var packed = document.getElementById("plotly-gz");

  window.addEventListener("beforeprint", function () {
    document.querySelectorAll("details").forEach(function (fold) { fold.open = true; });
  });
  if (!place || typeof DecompressionStream === "undefined") { return; }

  function colour(name) {
    return getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
  }

  function figure() {
    var made = JSON.parse(data.textContent);
    made.traces.forEach(function (trace) {
      var own = colour(trace.kind);
      trace.marker.color = own;
      if (trace.line) { trace.line.color = own; }
      [trace.error_x, trace.error_y].forEach(function (bars) { if (bars) { bars.color = own; } });
      delete trace.kind;
    });
    var layout = made.layout;
    layout.paper_bgcolor = layout.plot_bgcolor = colour("paper");
    layout.font = { color: colour("ink"), family: "system-ui, sans-serif", size: 13 };
    layout.hoverlabel = { bgcolor: colour("panel"), font: { color: colour("ink") }, align: "left" };
    [layout.xaxis, layout.yaxis].forEach(function (axis) {
      axis.gridcolor = axis.linecolor = colour("line");
      axis.zeroline = false;
    });
    return made;
  }

  function layoutForWidth(layout) {
    if (window.innerWidth < 640) { layout.margin.t = 8; layout.font.size = 11; }
  }

  function draw() {
    var made = figure();
    var settings = {
      responsive: true,
      displaylogo: false,
      displayModeBar: window.innerWidth >= 640,
      modeBarButtonsToRemove: ["select2d", "lasso2d"]
    };
    layoutForWidth(made.layout);
    place.hidden = false;
    return window.Plotly.react(place, made.traces, made.layout, settings).then(function () {
      place.parentElement.classList.add("drawn");
    });
  }

  var signs = atob(packed.textContent);
  var bytes = new Uint8Array(signs.length);
  for (var at = 0; at < signs.length; at += 1) { bytes[at] = signs.charCodeAt(at); }
  var stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  new Response(stream).text().then(function (code) {
    var script = document.createElement("script");
    script.textContent = code;
    document.head.appendChild(script);
    return draw();
  }).then(function () {
    window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
    document.documentElement.dataset.drawnAt = performance.now();
    document.documentElement.dataset.drawn = "yes";
  });
})();
