// A drawing of each device: its slices, the workers on them with what they serve, and how busy these are.  A worker that
// comes or goes fades in or out where it is; one that replaces another stands below it for the while.

import { byId, el, say, show } from "./dom.js";
import { number, part } from "./figures.js";
import { SHADES } from "./models.js";

const before = new Map(); // key of a worker: {rows, busy_s, at}
const rates = new Map();

const keyOf = (model, worker) => `${model} ${worker.placement} ${worker.variant} ${worker.pid ?? ""}`;

// Rows a second, and the part of the time that it was busy, of each worker since the message before.
export function measure(models, at) {
  const present = new Set();
  for (const [model, { workers }] of Object.entries(models)) {
    for (const worker of workers) {
      const key = keyOf(model, worker);
      const last = before.get(key);
      present.add(key);
      if (last && at - last.at < 0.5) continue;
      if (last) {
        const seconds = at - last.at;
        rates.set(key, {
          rows: Math.max(0, (worker.rows - last.rows) / seconds),
          busy: Math.min(1, Math.max(0, (worker.busy_s - last.busy_s) / seconds)),
        });
      }
      before.set(key, { rows: worker.rows, busy_s: worker.busy_s, at });
    }
  }
  for (const key of before.keys()) {
    if (!present.has(key)) {
      before.delete(key);
      rates.delete(key);
    }
  }
}

export const rateOf = (model, worker) => rates.get(keyOf(model, worker)) ?? { rows: null, busy: null };

export function render(devices, models) {
  const box = byId("devices");
  const names = new Set(devices.map((device) => device.device));
  for (const child of [...box.children]) if (!names.has(child.dataset.device)) child.remove();
  for (const device of devices) draw(box, device, models);
}

function draw(box, device, models) {
  let node = [...box.children].find((child) => child.dataset.device === device.device);
  if (!node) {
    node = el("div", { class: "device", data: { device: device.device } },
      el("p", { class: "device-head" }, el("b", { text: device.device }), el("span", { class: "note label" }), el("span", { class: "note watts" }), el("span", { class: "wrong troubles" })),
      el("div", { class: "slices", role: "list", "aria-label": `Workers on ${device.device}` }),
      el("p", { class: "change", hidden: true }, el("progress", { max: 1, value: 0, "aria-label": "Steps of the change" }), el("span")));
    box.append(node);
  }
  const mine = Object.entries(models).flatMap(([model, { workers, rows }]) =>
    workers.filter((worker) => worker.device === device.device).map((worker) => ({ model, worker, names: Object.keys(rows) })));
  const most = Math.max(device.slices, ...mine.map(({ worker }) => worker.start + worker.size));
  const columns = device.kind === "mig" && most === 7 ? 8 : most;
  const parked = device.parked ? `, parked: no workers, which spares ${number(device.spared_w)} W (${device.spared_method})` : "";
  say(node.querySelector(".label"), device.label + (device.emulated ? " (emulated)" : "") + parked);
  node.querySelector(".label").title = device.meter;
  say(node.querySelector(".watts"), device.watts === null ? "" : `${number(device.watts)} W, ${number(device.idle_w)} W of it at rest (${device.method})`);
  const wrong = [device.lost ? "lost" : "", device.quarantined.length ? `${device.quarantined.length} slots quarantined` : "", device.foreign.length ? `${device.foreign.length} foreign instances` : ""];
  say(node.querySelector(".troubles"), wrong.filter(Boolean).join(", "));
  place(node.querySelector(".slices"), columns, mine);
  change(node.querySelector(".change"), mine, models);
}

function place(grid, columns, mine) {
  if (grid.dataset.columns !== String(columns)) {
    grid.dataset.columns = columns;
    grid.style.gridTemplateColumns = `repeat(${columns}, minmax(0, 1fr))`;
    grid.querySelectorAll(".slot").forEach((slot) => slot.remove());
    for (let index = columns - 1; index >= 0; index--) {
      const slot = el("div", { class: "slot", text: String(index), "aria-hidden": "true" });
      slot.style.gridColumn = String(index + 1);
      grid.prepend(slot);
    }
  }
  const have = new Map([...grid.querySelectorAll(".worker:not(.gone)")].map((node) => [node.dataset.key, node]));
  const rows = [];
  for (const { model, worker, names } of mine) {
    const key = keyOf(model, worker);
    let node = have.get(key);
    have.delete(key);
    if (!node) {
      node = el("div", { class: "worker entering", role: "listitem", data: { key } },
        el("p", { class: "name" }), el("p", { class: "note what" }), el("p", { class: "load", "aria-hidden": "true" }, el("i")));
      node.style.gridColumn = `${worker.start + 1} / span ${worker.size}`;
      node.style.borderLeftColor = SHADES[Math.max(0, names.indexOf(worker.variant)) % SHADES.length];
      grid.append(node);
      requestAnimationFrame(() => requestAnimationFrame(() => node.classList.remove("entering")));
    }
    fill(node, model, worker);
    // Two workers of the same slices, while one replaces the other, stand one below the other.
    let row = 0;
    while (rows[row]?.some(([start, end]) => worker.start < end && start < worker.start + worker.size)) row += 1;
    (rows[row] ??= []).push([worker.start, worker.start + worker.size]);
    node.classList.toggle("second", row === 1);
    node.classList.toggle("third", row > 1);
  }
  for (const node of have.values()) {
    node.classList.add("gone");
    setTimeout(() => node.remove(), 600);
  }
}

function fill(node, model, worker) {
  const { rows, busy } = rateOf(model, worker);
  node.dataset.state = worker.state === "ready" ? "ready" : worker.state === "draining" ? "draining" : "starting";
  node.classList.toggle("leaving", worker.state === "draining");
  say(node.querySelector(".name"), worker.variant);
  const state = worker.state === "ready" ? (worker.routed ? "" : ", standing by") : `, ${worker.state}`;
  const load = rows === null ? "" : ` · ${number(rows)} rows/s · ${part(busy)} busy`;
  say(node.querySelector(".what"), `${model} · ${worker.profile} · ${worker.backend}${state}${load}`);
  node.title = `${worker.placement}, process ${worker.pid ?? "none"}, ${number(worker.rows, 6)} rows so far`;
  node.querySelector("i").style.transform = `scaleX(${busy ?? 0})`;
}

function change(node, mine, models) {
  const changing = [...new Set(mine.map(({ model }) => model))].filter((model) => models[model].transition);
  show(node, changing.length > 0);
  if (!changing.length) return;
  const { steps, done, step } = models[changing[0]].transition;
  node.querySelector("progress").value = steps ? done / steps : 0;
  say(node.querySelector("span"), `${changing[0]} is changing: ${done} of ${steps} steps done${step ? `, now ${step}` : ""}`);
}
