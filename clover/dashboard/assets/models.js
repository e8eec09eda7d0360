// A section for each model: accuracy against its budget, latency against its SLO, load, and who gets the rows.

import { draw, forget, tabulate } from "./charts.js";
import { byId, clone, el, say } from "./dom.js";
import { fixed, known, moment, number, part } from "./figures.js";

const sections = new Map();
export const SHADES = ["#3d638f", "#a85f00", "#7a4aa3", "#1b7878", "#a5382f", "#357a3a", "#6a6a1f", "#7a5a48"];

function section(name) {
  let node = sections.get(name);
  if (!node) {
    node = clone("model-template");
    const head = node.querySelector("h2");
    head.id = `model-${sections.size}-head`;
    head.textContent = name;
    node.setAttribute("aria-labelledby", head.id);
    sections.set(name, node);
    byId("models").append(node);
  }
  return node;
}

export function prune(names) {
  for (const [name, node] of sections) {
    if (!names.includes(name)) {
      node.querySelectorAll(".chart").forEach(forget);
      node.remove();
      sections.delete(name);
    }
  }
}

function badges(model) {
  const found = [];
  if (model.mode) found.push([`mode ${model.mode}`, ""]);
  if (model.pin) found.push([`pinned to ${model.pin}`, "warned"]);
  if (model.frozen) found.push(["frozen", "warned"]);
  if (model.transition) found.push(["changing", "warned"]);
  if (model.verifying) found.push(["watching the last change", ""]);
  if (model.guard && model.guard !== "ok") found.push([`guard: ${model.guard}`, "wrong"]);
  if (model.state && model.state !== "READY") found.push([model.state.toLowerCase(), "wrong"]);
  if (!model.planned) found.push(["served without a plan", ""]);
  return found.map(([text, kind]) => el("span", { text, class: `badge ${kind}` }));
}

export function render(name, model) {
  const node = section(name);
  say(node.querySelector(".reason"), planWords(model));
  node.querySelector(".reason").title = model.reason;
  const marks = badges(model);
  const box = node.querySelector(".badges");
  if (box.textContent !== marks.map((mark) => mark.textContent).join("")) box.replaceChildren(...marks);
  const note = (kind, text) => say(node.querySelector(`[data-note="${kind}"]`), text);
  note("accuracy", accuracyWords(model));
  note("latency", [model.slo_words, model.alarm].filter(Boolean).join(". ") || `${fixed(model.latency_ms[1], 2)} ms`);
  note("load", `${number(model.arrival_rate)} rows/s arrive, ${number(model.queue_rows)} wait; ${requests(model.requests)}`);
  mix(node.querySelector(".mix"), node.querySelector(".names"), model);
}

const UNBOUNDED_MS = 3.6e6; // of a plan that is overloaded

// What the plan in force expects; its reason in full is among the decisions.
function planWords(model) {
  const { p95_ms: p95, accuracy, energy_j_per_row: joules } = model.predicted;
  if (!known(accuracy)) return model.reason || model.terms;
  const latency = known(p95) && p95 < UNBOUNDED_MS ? `a p95 of ${number(p95)} ms` : "a p95 without bound";
  return `The plan expects ${latency} (SLO ${number(model.slo_ms)} ms), an accuracy of ${fixed(accuracy, 2)} % (floor ${fixed(model.accuracy_floor, 2)} %) and ${number(joules)} J a row.`;
}

function accuracyWords(model) {
  const parts = [];
  if (known(model.accuracy)) parts.push(`${fixed(model.accuracy, 2)} % by the profile`);
  if (model.accuracy_apart) parts.push(`${fixed(model.accuracy_judged, 2)} % ${model.accuracy_apart}`);
  if (known(model.accuracy_by_labels)) parts.push(`${fixed(model.accuracy_by_labels, 2)} % by ${number(model.labelled_rows)} labels`);
  if (model.budget && known(model.budget.target)) {
    parts.push(`budget: ${fixed(model.budget.target, 2)} % on average (${fixed(model.budget.accuracy, 2)} so far)`);
  }
  if (known(model.accuracy_floor)) parts.push(`floor ${fixed(model.accuracy_floor, 2)} %`);
  return parts.join(" · ") || "not known: this model is served without a profile";
}

function requests(codes) {
  const all = Object.entries(codes);
  if (!all.length) return "no request yet";
  return all.map(([code, count]) => `${number(count, 4)} answered ${code}`).join(", ");
}

function mix(node, list, model) {
  const shares = Object.entries(model.shares);
  const names = Object.keys(model.rows);
  const chain = model.chain.length > 1 ? model.chain : null;
  const wanted = shares.map(([variant, share]) => `${variant} ${part(share)}`).join(", ");
  node.setAttribute("aria-label", `Rows by variant: ${wanted || "not routed"}${chain ? `; cascade ${chain.join(" to ")}` : ""}`);
  node.title = chain ? `cascade: ${chain.join(" → ")}, thresholds ${model.thresholds.map((value) => fixed(value, 3)).join(", ")}` : "";
  const have = new Map([...node.children].map((child) => [child.dataset.variant, child]));
  for (const [variant, share] of shares) {
    let child = have.get(variant);
    if (!child) {
      child = el("span", { data: { variant } });
      child.style.setProperty("--shade", SHADES[Math.max(0, names.indexOf(variant)) % SHADES.length]);
      node.append(child);
    }
    have.delete(variant);
    child.style.flexGrow = share;
    child.title = `${variant} ${part(share)}`;
  }
  have.forEach((child) => child.remove());
  if (list.dataset.wanted === wanted) return;
  list.dataset.wanted = wanted;
  list.replaceChildren(...shares.map(([variant, share]) => {
    const label = el("span", { text: `${variant} ${part(share)}` });
    label.style.setProperty("--shade", SHADES[Math.max(0, names.indexOf(variant)) % SHADES.length]);
    return label;
  }));
}

// The figures of a model over time, as columns of the history.
function series(name, history) {
  const x = (history.at ?? []).map(moment);
  const y = (figure) => history[`${name}.${figure}`] ?? [];
  const some = (figure) => y(figure).some(known);
  return {
    accuracy: [
      { name: "by profile", x, y: y("accuracy"), colour: "green", unit: "%" },
      ...(some("labels") ? [{ name: "by labels", x, y: y("labels"), colour: "violet", unit: "%" }] : []),
    ],
    latency: [
      { name: "p50", x, y: y("p50"), colour: "soft", unit: "ms" },
      { name: "p95", x, y: y("p95"), colour: "green", unit: "ms", width: 2 },
      { name: "p99", x, y: y("p99"), colour: "violet", unit: "ms" },
    ],
    load: [
      { name: "waiting", x, y: y("queue"), colour: "amber", unit: "rows", second: true, dash: "dot" },
      { name: "arrive", x, y: y("rate"), colour: "soft", unit: "rows/s" },
      { name: "served", x, y: y("served"), colour: "green", unit: "rows/s", width: 2 },
    ],
  };
}

export function paint(name, model, history) {
  const node = section(name);
  const found = series(name, history);
  const lines = {
    accuracy: [
      { value: model.accuracy_floor, name: "floor", colour: "red" },
      { value: model.budget?.target, name: "budget", colour: "blue", left: true },
    ],
    latency: [{ value: model.slo_ms, name: "SLO (p95)", colour: "red" }],
    load: [],
  };
  const more = { accuracy: { unit: "%", zero: false }, latency: { unit: "ms" }, load: { unit: "rows/s", second: "rows waiting" } };
  for (const kind of Object.keys(found)) {
    const box = node.querySelector(`.chart[data-kind="${kind}"]`);
    box.setAttribute("aria-label", `${name}: ${node.querySelector(`[data-note="${kind}"]`).textContent}`);
    draw(box, found[kind], { lines: lines[kind], ...more[kind] });
    const details = node.querySelector(`details[data-kind="${kind}"]`);
    tabulate(details, found[kind]);
    details.ontoggle = () => tabulate(details, found[kind]);
  }
}
