// The page: takes the server's messages, and shows first what matters first.

import * as actions from "./actions.js";
import * as charts from "./charts.js";
import * as devices from "./devices.js";
import { byId, el, fill, say, show } from "./dom.js";
import { age, clock, energy, fixed, grams, known, mass, moment, number, part, when } from "./figures.js";
import * as models from "./models.js";
import { authorised, Stream, token } from "./stream.js";

const PAINT_MS = 5000;
const MOST_SAMPLES = 2400;
const MOST_DECISIONS = 120;

let now = null; // the newest message
let history = {};
let decisions = new Map();
let forecast = { past: [], ahead: [] };
let epoch = null;
let painted = 0;
let heard = 0;

// --- messages ----------------------------------------------------------------------------------------------------------

function take(name, message) {
  if (name !== "hello" && name !== "tick") return;
  if (epoch !== null && message.epoch !== epoch) {
    decisions = new Map(); // another start: it counts anew
    say(byId("action-result"), `the server was started again at ${when(message.started_s)}`);
  }
  epoch = message.epoch;
  now = message;
  heard = Date.now();
  if (name === "hello") {
    history = message.history;
    decisions = new Map();
  } else {
    append(message.sample);
  }
  if (message.forecast) forecast = message.forecast;
  for (const one of message.decisions ?? []) decisions.set(one.id, one);
  render(message);
  document.body.dataset.messages = Number(document.body.dataset.messages ?? 0) + 1;
  if (name === "hello" || Date.now() - painted >= PAINT_MS) paint();
}

function append(sample) {
  if (!sample) return;
  const length = history.at?.length ?? 0;
  for (const key of Object.keys(sample)) history[key] ??= new Array(length).fill(null);
  for (const [key, column] of Object.entries(history)) {
    column.push(sample[key] ?? null);
    if (column.length > MOST_SAMPLES) column.splice(0, column.length - MOST_SAMPLES);
  }
}

// --- figures -----------------------------------------------------------------------------------------------------------

function render(message) {
  health(message);
  say(byId("steering"), `policy ${message.policy} · mode ${message.mode}${message.frozen ? " · frozen" : ""} · up ${age(message.at - message.started_s)}`);
  say(byId("caveat"), message.caveat);
  show(byId("caveat"), Boolean(message.caveat));
  emits(message);
  saved(message);
  grid(message);
  accuracy(message.models);
  latency(message.models);
  load(message.models);
  devices.measure(message.models, message.at);
  devices.render(message.devices, message.models);
  const names = Object.keys(message.models);
  models.prune(names);
  names.forEach((name) => models.render(name, message.models[name]));
  timeline();
  providers(message.providers);
  workers(message.models);
  actions.offer(message.models);
  say(byId("foot"), `${message.idle && !message.light ? `${message.idle} · ` : ""}server's clock ${clock(message.at)}`);
}

function health({ ready, draining, troubles, verdict }) {
  const level = draining || !ready ? "bad" : troubles.length ? "warn" : "good";
  const text = draining
    ? "Shutting down: what was received is answered"
    : !ready
      ? "Not ready: some model has no worker that takes requests"
      : troubles.length
        ? `Serving, but ${troubles.length === 1 ? "something is" : `${troubles.length} things are`} wrong`
        : `Healthy: ${verdict}`;
  byId("health").dataset.level = level;
  say(byId("health-text"), text);
  const list = byId("health-list");
  if ([...list.children].map((item) => item.textContent).join("\n") !== troubles.join("\n")) {
    list.replaceChildren(...troubles.map((one) => el("li", { text: one })));
  }
  document.title = `${level === "good" ? "" : "⚠ "}Clover`;
}

function tile(id, value, unit, first, second, level = "") {
  const node = byId(id);
  say(node.querySelector(".value"), value);
  say(node.querySelector(".unit"), unit);
  const notes = node.querySelectorAll(".note");
  say(notes[0], first);
  say(notes[1], second);
  notes[1].title = second;
  node.dataset.level = level;
}

// What the ledger has of today, as it was last read; models in it are named that are served no more: an earlier run had
// them, or they were unloaded.
function ofToday({ today, models: served }) {
  const gone = (today.models ?? []).filter((name) => !(name in served));
  return `today until ${when(today.at)}${gone.length ? `, ${gone.join(", ")} included (not served now)` : ""}`;
}

function emits(message) {
  const { emission, today } = message;
  const [value, unit] = mass(emission.grams_per_hour);
  const kept = known(today?.grams);
  const sums = kept ? today : emission;
  const sum = `${grams(sums.grams)} and ${energy(sums.joules)} ${kept ? ofToday(message) : "since the start"}`;
  const known_as = [sums.energy && `energy ${sums.energy}`, sums.intensity && `intensity ${sums.intensity}`].filter(Boolean).join(", ");
  const drawn = `${number(emission.watts)} W drawn, ${number(emission.idle_w)} W at rest · PUE ${number(emission.pue)}`;
  tile("tile-emits", value, `${unit}CO₂e/h`, message.light ? message.idle : drawn, `${message.light ? `${drawn} · ` : ""}${sum} · ${known_as}`);
}

// Of today, if a ledger keeps it; else since the start.
function comparisons(message) {
  const { today, saved: since } = message;
  if (today?.saved?.length) return { items: today.saved, since: ofToday(message), known: today.known };
  return { items: since?.items ?? [], since: `since the start, ${when(now.started_s)}`, known: since?.known ?? "" };
}

function saved(message) {
  const { items, since, known: how } = comparisons(message);
  const best = items.find((item) => item.kind === "base") ?? items[0];
  say(byId("saved-head"), since.startsWith("today") ? "Saved today" : "Saved since the start");
  const asked = byId("saved-all");
  if (asked.dataset.light !== String(message.light)) {
    asked.dataset.light = String(message.light);
    asked.open = !message.light;
  }
  if (!best) {
    tile("tile-saved", "–", "", "nothing was compared yet", "");
  } else if (message.light) {
    tile("tile-saved", "–", "", "too little load to save on", "the comparisons are below");
  } else {
    const [value, unit] = mass(best.grams);
    const doubt = best.low <= 0 && best.high >= 0;
    tile("tile-saved", value, `${unit}CO₂e`, `against ${title(best)}${known(best.part) ? `: ${part(best.part)}` : ""}${doubt ? ", may be nothing" : ""}${best.verified === false ? ", not yet verified" : ""}`, `${since} · ${how}`, doubt ? "" : best.grams > 0 ? "good" : "bad");
  }
  say(byId("saved-note"), items.length ? `${since[0].toUpperCase()}${since.slice(1)}. Below zero: more was emitted. ${best.against ?? ""}` : "Shown once rows were served.");
  say(byId("saved-known"), how);
  fill(byId("saved-table").tBodies[0], items.map((item) => [
    { text: title(item), title: item.words },
    { text: grams(item.grams), class: item.low > 0 ? "num good" : item.high < 0 ? "num wrong" : "num" },
    { text: `${grams(item.low)} to ${grams(item.high)}`, class: "num" },
    { text: part(item.part), class: "num" },
    { text: known(item.accuracy_given_up) ? `${item.accuracy_given_up > 0 ? "−" : "+"}${fixed(Math.abs(item.accuracy_given_up), 2)} pts` : "–", class: "num" },
  ]), "nothing was compared yet");
}

const TITLES = { base: "BASE", fixed: "the best fixed mix", matched: "the best fixed mix" };
const title = (item) => TITLES[item.kind] ?? item.kind;

function grid({ carbon }) {
  if (!carbon) {
    tile("tile-grid", "–", "gCO₂e/kWh", "no intensity was read yet", "");
    return;
  }
  const level = ["fresh"].includes(carbon.state) ? "" : "bad";
  const zone = carbon.zone && carbon.zone !== carbon.provider ? ` ${carbon.zone}` : "";
  const source = carbon.method === "stand-in" ? "stand-in: no source has a value" : `${carbon.provider}${zone}, ${age(carbon.age_s)} old`;
  tile("tile-grid", number(carbon.g_per_kwh), "gCO₂e/kWh", source, carbon.trouble || carbon.label, level);
}

// The model that is nearest to its limit, of those that have one.
function nearest(all, margin) {
  return Object.entries(all).map(([name, model]) => [name, model, margin(model)]).filter(([, , value]) => known(value)).sort((a, b) => a[2] - b[2])[0];
}

const named = (all, name) => (Object.keys(all).length > 1 ? `${name}: ` : "");

function accuracy(all) {
  const found = nearest(all, (model) => (known(model.accuracy_judged) && known(model.accuracy_floor) ? model.accuracy_judged - model.accuracy_floor : null));
  if (!found) {
    const first = Object.values(all).find((model) => known(model.accuracy_floor));
    tile("tile-accuracy", "–", "%", first ? "nothing was answered yet" : "not known", first ? `floor ${fixed(first.accuracy_floor, 2)} %` : "");
    return;
  }
  const [name, model, margin] = found;
  const budget = model.budget && known(model.budget.target) ? `budget ${fixed(model.budget.target, 2)} % · ` : "";
  const labels = known(model.accuracy_by_labels) ? `${fixed(model.accuracy_by_labels, 2)} % by labels` : "by the profile; no labels yet";
  tile("tile-accuracy", fixed(model.accuracy, 2), "%", `${named(all, name)}${budget}floor ${fixed(model.accuracy_floor, 2)} %`, labels, margin < -0.005 ? "bad" : "");
}

function latency(all) {
  const found = nearest(all, (model) => (known(model.p95_ms) && known(model.slo_ms) ? 1 - model.p95_ms / model.slo_ms : null));
  if (!found) {
    const first = Object.values(all).find((model) => known(model.slo_ms));
    tile("tile-latency", "–", "ms", "no answer lately", first ? `SLO ${number(first.slo_ms)} ms; ${first.slo_words}` : "");
    return;
  }
  const [name, model] = found;
  const [p50, , p99] = model.latency_ms;
  const held = known(model.held_ratio) ? model.slo_words : "";
  tile("tile-latency", number(model.p95_ms), `ms of ${number(model.slo_ms)} ms`, `${named(all, name)}p50 ${number(p50)} · p99 ${number(p99)} ms`, held, model.late ? "bad" : "");
}

function load(all) {
  const sum = (key) => Object.values(all).reduce((total, model) => total + (model[key] ?? 0), 0);
  const codes = {};
  for (const model of Object.values(all)) for (const [code, count] of Object.entries(model.requests)) codes[code] = (codes[code] ?? 0) + count;
  const failed = Object.entries(codes).filter(([code]) => code >= "429").reduce((total, [, count]) => total + count, 0);
  const fine = codes["200"] ?? 0;
  tile("tile-load", number(sum("served_rate")), "rows/s", `${number(sum("queue_rows"))} waiting · ${number(sum("in_flight_rows"))} being computed`, `${number(fine, 6)} answered${failed ? ` · ${number(failed)} refused or failed` : ""}`);
}

// --- lists -------------------------------------------------------------------------------------------------------------

const ACTS = { applied: "good", routed: "good", failed: "wrong", fault: "wrong", "rolled back": "wrong", refused: "warned", "dry run": "note" };
const LINES = new Map();

function timeline() {
  const list = byId("decisions");
  const newest = [...decisions.values()].sort((a, b) => b.id - a.id).slice(0, MOST_DECISIONS);
  decisions = new Map(newest.map((one) => [one.id, one]));
  const wanted = newest.map((one) => {
    const mark = `${epoch}.${one.id}.${one.count}`;
    if (LINES.get(one.id)?.dataset.mark !== mark) LINES.set(one.id, line(one, mark));
    return LINES.get(one.id);
  });
  for (const id of LINES.keys()) if (!decisions.has(id)) LINES.delete(id);
  if (wanted.some((node, index) => list.children[index] !== node) || list.children.length !== wanted.length) {
    const top = list.scrollTop;
    list.replaceChildren(...(wanted.length ? wanted : [el("li", { class: "note", text: "none yet" })]));
    list.scrollTop = top;
  }
}

function line(one, mark) {
  const at = new Date(one.last_at).getTime() / 1000;
  const many = one.count > 1 ? ` (${one.count} times since ${when(new Date(one.at).getTime() / 1000)})` : "";
  const who = one.operator ? ` by ${one.operator}` : "";
  const reason = one.reason && el("details", {}, el("summary", { text: one.runs || "plan" }), el("p", { class: "note", text: one.reason }));
  return el("li", { data: { mark } },
    el("time", { text: when(at), datetime: one.last_at }),
    el("span", { class: `act ${ACTS[one.action] ?? ""}`, text: one.action }),
    el("span", { text: `${one.model}: ${one.trigger}${who}${many}` }),
    el("div", { class: "why" }, one.detail && el("p", { text: one.detail }), reason || null));
}

function providers(found) {
  fill(byId("providers").tBodies[0], found.map((one) => [
    { text: one.name, class: "" },
    one.trouble || one.error
      ? { text: one.trouble || one.error, class: one.in_force ? "warned" : "wrong" }
      : { text: one.in_force ? "in force" : one.reads ? "answers" : "not asked yet", class: one.in_force ? "good" : "note" },
    { text: number(one.g_per_kwh), class: "num", title: known(one.at_s) ? `of ${moment(one.at_s)}` : "" },
    { text: `${number(one.failures)}`, class: "num" },
  ]), "none");
}

function workers(all) {
  const rows = Object.entries(all).flatMap(([name, model]) => model.workers.map((worker) => {
    const { rows: rate, busy } = devices.rateOf(name, worker);
    const fine = worker.state === "ready";
    return [
      { text: worker.placement, title: `process ${worker.pid ?? "none"}` },
      `${named(all, name)}${(worker.variants ?? [worker.variant]).join(" + ")} (${worker.backend})`,
      { text: fine ? (worker.routed ? "ready" : "stands by") : worker.state, class: fine ? "" : "warned" },
      { text: number(rate), class: "num" },
      { text: part(busy), class: "num" },
      { text: number(worker.restarts), class: worker.restarts ? "num warned" : "num" },
    ];
  }));
  fill(byId("workers").tBodies[0], rows, "no worker");
  const events = Object.entries(all).flatMap(([name, model]) => model.events.map((event) => `${named(all, name)}${Object.values(event).join(" · ")}`));
  const list = byId("events");
  if (list.dataset.events !== events.join("\n")) {
    list.dataset.events = events.join("\n");
    list.replaceChildren(...events.slice(-6).reverse().map((text) => el("li", { text })));
  }
}

// --- charts ------------------------------------------------------------------------------------------------------------

function gridSeries() {
  const fine = (history.grid_s ?? []).map((at, index) => [at, history.g_per_kwh[index]]);
  const first = fine[0]?.[0] ?? Infinity;
  const past = [...forecast.past.filter(([at]) => at < first), ...fine];
  const last = past[past.length - 1];
  const ahead = [...(last ? [last] : []), ...forecast.ahead.filter(([at]) => at > (last?.[0] ?? 0))];
  return [
    { name: "past", x: past.map(([at]) => moment(at)), y: past.map(([, value]) => value), colour: "green", unit: "g/kWh", width: 2, step: true, area: true },
    { name: "forecast", x: ahead.map(([at]) => moment(at)), y: ahead.map(([, value]) => value), colour: "blue", unit: "g/kWh", dash: "dot" },
  ];
}

function paint() {
  painted = Date.now();
  if (!now) return;
  const planned = Object.values(now.models).find((model) => known(model.reference));
  const plan = charts.inForce([...decisions.values()]);
  const series = gridSeries();
  const end = series[1].x.at(-1) ?? series[0].x.at(-1);
  const here = moment(now.grid_s);
  const width = now.intensity_change;
  const words = [
    planned && `${number(planned.reference)}: the reference, at which accuracy and carbon weigh alike (${planned.reference_from})`,
    plan && `the plan in force was made at ${number(plan.g_per_kwh)} and is made anew beyond ${part(width)} of it (band)`,
  ].filter(Boolean).join(" · ");
  say(byId("grid-note"), words || "No plan was made yet.");
  byId("chart-grid").setAttribute("aria-label", `Carbon intensity now ${number(now.carbon?.g_per_kwh)} gCO2e/kWh. ${words}`);
  charts.draw(byId("chart-grid"), series, {
    unit: "gCO₂e/kWh",
    lines: [{ value: planned?.reference, name: "reference", colour: "blue", left: true }, { x: here, name: " now", colour: "soft" }],
    bands: plan && end ? [{ x0: here, x1: end > here ? end : moment(now.grid_s + 3600), y0: plan.g_per_kwh * (1 - width), y1: plan.g_per_kwh * (1 + width) }] : [],
  });
  const emitted = [{ name: "emitted", x: (history.at ?? []).map(moment), y: history.grams_per_hour ?? [], colour: "green", unit: "g/h", area: true }];
  byId("chart-emissions").setAttribute("aria-label", `Emissions, now ${grams(now.emission.grams_per_hour)} CO2e an hour`);
  charts.draw(byId("chart-emissions"), emitted, { unit: "gCO₂e/h" });
  for (const [key, found] of [["grid", series], ["emissions", emitted]]) {
    const details = document.querySelector(`details[data-chart="${key}"]`);
    charts.tabulate(details, found);
    details.ontoggle = () => charts.tabulate(details, found);
  }
  for (const [name, model] of Object.entries(now.models)) models.paint(name, model, history);
}

// --- the connection ----------------------------------------------------------------------------------------------------

function linked(state, words) {
  byId("link").dataset.state = state;
  linkWords = words;
  ticked();
}

let linkWords = "connecting";

function ticked() {
  const state = byId("link").dataset.state;
  const old = heard ? (Date.now() - heard) / 1000 : null;
  say(byId("link-text"), state === "live" ? "live" : old === null ? linkWords : `${linkWords}; figures are ${age(old)} old`);
}

async function report(event) {
  if (!token.get()) return; // an ordinary link, which opens here
  event.preventDefault();
  const answer = await fetch("/dashboard/report", { headers: authorised() });
  const link = el("a", { href: URL.createObjectURL(await answer.blob()), download: answer.ok ? "clover-report.html" : "clover-report.txt" });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

const stream = new Stream("/dashboard/stream", { onEvent: take, onState: linked, onRefused: () => actions.openToken("This server is read with a token (listen.token).") });
actions.setUp(() => stream.start());
byId("report-link").addEventListener("click", report);
setInterval(ticked, 1000);
stream.start();
// Plotly is large: it is asked for once the figures are there, or after a moment without them.
const begun = performance.now();
const waiting = setInterval(() => {
  if (!now && performance.now() - begun < 3000) return;
  clearInterval(waiting);
  charts.load(document.body.dataset.plotly, paint);
}, 50);
