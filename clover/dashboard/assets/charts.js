// Charts by plotly, which is loaded after the figures are there; each has a table with the same values beside it.

import { byId, el, fill } from "./dom.js";
import { known, number } from "./figures.js";

let plotly = null;
const drawn = new Map(); // node: function that draws it again

const IN_FORCE = ["applied", "routed", "kept", "observed"];

// The decision of the plan that is in force, of those given, newest first: a dry run or a refusal leaves the plan as it is.
export const inForce = (decisions) => decisions.find((one) => known(one.g_per_kwh) && IN_FORCE.includes(one.action));

export const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

export function load(address, ready) {
  if (!address) {
    document.querySelectorAll(".chart").forEach(without);
    byId("charts-note").textContent = 'For charts install the extra "dashboard": pip install "clover-inference[dashboard]".';
    return;
  }
  const script = el("script", { src: address });
  script.addEventListener("load", () => {
    plotly = globalThis.Plotly;
    ready();
  });
  script.addEventListener("error", () => (byId("charts-note").textContent = "Charts could not be loaded."));
  document.head.append(script);
}

function without(node) {
  node.classList.add("empty");
  node.textContent = "no charts here: see the table below";
}

// Draws lines: `series` is a list of {name, x, y, colour, ...}; `lines` a list of {value, name, colour} across.
export function draw(node, series, { lines = [], bands = [], unit = "", second = "", zero = true, tall = false } = {}) {
  if (document.body.dataset.plotly === "" && !node.classList.contains("empty")) without(node);
  if (!plotly) return;
  const paint = () => plotly.react(node, traces(series), layout(node, { lines, bands, unit, second, zero, tall, series }), SETTINGS);
  drawn.set(node, paint);
  paint();
}

export function forget(node) {
  drawn.delete(node);
  if (plotly) plotly.purge(node);
}

const SETTINGS = { displayModeBar: false, responsive: true, doubleClick: "reset" };

// The height of the second axis, at least four, so that a single row does not fill it.
function most(series) {
  const values = series.filter((one) => one.second).flatMap((one) => one.y).filter(known);
  return 1.15 * Math.max(3.5, ...values);
}

function traces(series) {
  return series.map((one) => ({
    type: one.bars ? "bar" : "scatter",
    mode: one.x.length < 4 ? "lines+markers" : "lines",
    name: one.name,
    x: one.x,
    y: one.y,
    yaxis: one.second ? "y2" : "y",
    connectgaps: false,
    hovertemplate: `%{y:.4~g} ${one.unit ?? ""}<extra>${one.name}</extra>`,
    ...(one.bars
      ? { marker: { color: colour(one.colour) }, opacity: 0.35 }
      : {
          line: { color: colour(one.colour), width: one.width ?? 1.6, dash: one.dash, shape: one.step ? "hv" : "linear" },
          fill: one.area ? "tozeroy" : undefined,
          fillcolor: one.area ? colour("band") : undefined,
        }),
  }));
}

function layout(node, { lines, bands, unit, second, zero, series }) {
  const grid = colour("line");
  const axis = { gridcolor: grid, linecolor: grid, zeroline: false, tickfont: { size: 10 }, fixedrange: true };
  const name = { size: 10, color: colour("soft") };
  return {
    margin: { l: 44, r: second ? 40 : 12, t: series.length > 1 ? 22 : 8, b: 34 },
    paper_bgcolor: "transparent",
    plot_bgcolor: "transparent",
    font: { family: getComputedStyle(document.body).fontFamily, size: 11, color: colour("soft") },
    showlegend: series.length > 1,
    legend: { orientation: "h", x: 1, xanchor: "right", y: 1.01, yanchor: "bottom", font: { size: 10 }, itemwidth: 30 },
    hovermode: "x unified",
    hoverlabel: { bgcolor: colour("paper"), bordercolor: grid, font: { color: colour("ink"), size: 11 } },
    bargap: 0,
    xaxis: { ...axis, type: "date", showgrid: false, hoverformat: "%d %b %H:%M:%S", nticks: node.clientWidth < 420 ? 4 : 7 },
    yaxis: { ...axis, rangemode: zero ? "tozero" : "normal", nticks: 5, title: { text: unit, font: name, standoff: 4 } },
    yaxis2: { ...axis, overlaying: "y", side: "right", range: [0, most(series)], showgrid: false, nticks: 4, tickmode: "auto", tickformat: ",~s", title: { text: second, font: name, standoff: 4 } },
    shapes: [
      ...bands.map((one) => ({ type: "rect", layer: "below", xref: "x", x0: one.x0, x1: one.x1, y0: one.y0, y1: one.y1, fillcolor: colour("band"), line: { width: 0 } })),
      ...lines.filter((one) => known(one.value) || one.x).map((one) =>
        one.x
          ? { type: "line", xref: "x", yref: "paper", x0: one.x, x1: one.x, y0: 0, y1: 1, line: { color: colour(one.colour), width: 1, dash: "dot" } }
          : { type: "line", xref: "paper", x0: 0, x1: 1, y0: one.value, y1: one.value, line: { color: colour(one.colour), width: 1, dash: "dash" } }),
    ],
    annotations: lines.filter((one) => one.name && (known(one.value) || one.x)).map((one) => ({
      ...(one.x ? { x: one.x, yref: "paper", y: 1, xanchor: "left", yanchor: "top" } : { xref: "paper", x: one.left ? 0 : 1, y: one.value, xanchor: one.left ? "left" : "right", yanchor: "bottom" }),
      text: one.name,
      showarrow: false,
      font: { size: 10, color: colour(one.colour) },
    })),
  };
}

// The values of a chart in a table, newest first, made when it is opened and while it is open.
export function tabulate(details, series, rows = 40) {
  if (!details.open) return;
  const box = details.querySelector(".scroll");
  let table = box.querySelector("table");
  const heads = ["time", ...series.map((one) => (one.unit ? `${one.name}, ${one.unit}` : one.name))];
  if (!table || table.tHead.rows[0].cells.length !== heads.length) {
    table = el("table", {}, el("thead", {}, el("tr", {}, ...heads.map((text) => el("th", { text, scope: "col" })))), el("tbody"));
    box.replaceChildren(table);
  }
  const times = new Map();
  for (const [index, one] of series.entries()) {
    for (let at = Math.max(0, one.x.length - 2 * rows); at < one.x.length; at++) {
      if (!times.has(one.x[at])) times.set(one.x[at], series.map(() => "–"));
      times.get(one.x[at])[index] = number(one.y[at], 4);
    }
  }
  const newest = [...times.entries()].sort(([a], [b]) => (a < b ? 1 : -1)).slice(0, rows);
  fill(table.tBodies[0], newest.map(([time, values]) => [time.slice(5), ...values.map((text) => ({ text, class: "num" }))]), "nothing yet");
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawn.forEach((paint) => paint()));
