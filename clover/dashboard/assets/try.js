// Asks a model for one row: a field for each input that it declares, its answer, and what the answer cost.  Only the
// public API is used, and numbers go as JSON, so that the server checks them.

import { openToken, setUpToken } from "./actions.js";
import { byId, el, fill, say } from "./dom.js";
import { energy, grams, known, number } from "./figures.js";
import { authorised, token } from "./stream.js";

const TYPED = 64; // numbers of an input, at most, that are typed
const OPEN = 32; // length of a variable axis of random values
const SIDE = 256; // of a picture whose size the model leaves open
const SHOWN = 10; // values of an output
const FILES = { "decode-image": ["a picture (JPEG or PNG)", "image/jpeg,image/png"], "decode-wav": ["a sound (WAV)", ".wav"] };

let model = null;
let readers = []; // of each input: a function that returns its tensor for a request, and its bytes if JSON cannot carry it

async function call(path, body, headers = {}) {
  const answer = await fetch(path, { method: body === undefined ? "GET" : "POST", headers: authorised(headers), body });
  const found = await answer.json().catch(() => ({}));
  if (answer.status === 401) openToken(token.get() ? "The server did not take that token." : "This server is asked with a token.");
  if (!answer.ok) throw new Error(`refused (${answer.status}): ${found.error ?? "no reason was given"}`);
  return found;
}

// --- what a model takes ------------------------------------------------------------------------------------------------

const product = (axes) => axes.reduce((all, axis) => all * axis, 1);
const field = (text, node) => el("label", {}, text, node);
const chooser = (accept) => el("input", { type: "file", accept, required: true });

// The ways to give an input: [words, nodes, function that reads them], the usual one first.
function ways(input, row) {
  if (input.datatype === "BYTES") {
    const { before = [], run } = model.parameters?.steps ?? {};
    const decoder = before.find((one) => run === "worker" && FILES[one.step] && (one.input ?? model.inputs[0].name) === input.name);
    return decoder ? [bytes(...FILES[decoder.step])] : [text(row), bytes("a file")];
  }
  const given = row.some((axis) => axis < 0) || product(row) <= TYPED ? [typed(input, row)] : [];
  const picture = /^(UINT8|FP32)$/.test(input.datatype) ? pictured(input, row) : [];
  return [...given, ...picture, random(input, row), numbers(input, row)];
}

function text(row) {
  const lines = product(row) !== 1;
  const node = el("textarea", { rows: 4 });
  const read = () => ({ tensor: shaped(row, lines ? node.value.split("\n") : [node.value]) });
  return ["text", [field(lines ? "Texts, one a line" : "Text", node)], read];
}

function bytes(words, accept) {
  const node = chooser(accept);
  const read = async () => {
    const length = new DataView(new ArrayBuffer(4));
    length.setUint32(0, node.files[0].size, true);
    const body = new Blob([length, node.files[0]]);
    return { tensor: { shape: [1, 1], parameters: { binary_data_size: body.size } }, body };
  };
  return [words, [field(`File: ${words}`, node)], read];
}

function typed(input, row) {
  const node = el("textarea", { rows: 2, required: true, spellcheck: "false" });
  if (product(row) > 0) node.value = Array(product(row)).fill(input.datatype === "BOOL" ? "false" : "0").join(", ");
  return ["values", [field("Values, with commas between them or as JSON", node)], () => ({ tensor: shaped(row, parsed(input, node.value)) })];
}

function numbers(input, row) {
  const node = chooser(".json,.csv,.txt");
  const read = async () => ({ tensor: shaped(row, parsed(input, await node.files[0].text())) });
  return ["a file of numbers", [field("File: numbers with commas between them, JSON, or a request in JSON", node)], read];
}

function random(input, row) {
  const fraction = input.datatype.startsWith("FP") || input.datatype === "BOOL";
  const most = input.datatype === "UINT8" ? 255 : fraction ? 1 : 9;
  const draw = { BOOL: () => Math.random() < 0.5 }[input.datatype] ??
    (fraction ? () => Number(Math.random().toFixed(4)) : () => Math.floor(Math.random() * (most + 1)));
  const shape = row.map((axis) => (axis < 0 ? OPEN : axis));
  const read = () => ({ tensor: { shape: [1, ...shape], data: Array.from({ length: product(shape) }, draw) } });
  return ["random values", [el("p", { class: "note", text: `From 0 to ${most}, of shape [${shape.join(", ")}], others each time.` })], read];
}

// A way to give a tensor that may hold a picture: height and width, with one or three channels before or after them.
function pictured(input, row) {
  const at = row.length === 2 ? -1 : row.length === 3 ? [0, 2].find((axis) => row[axis] === 1 || row[axis] === 3) : undefined;
  const sides = row.filter((_, axis) => axis !== at);
  if (at === undefined || sides.some((side) => side >= 0 && side < 8)) return [];
  const node = chooser("image/*");
  const inverted = el("input", { type: "checkbox" });
  const canvas = el("canvas", { role: "img", "aria-label": "The picture as it is sent", hidden: true });
  const draw = async () => {
    const picture = await createImageBitmap(node.files[0]).catch(() => null);
    if (!picture) throw new Error("this browser cannot read that picture");
    let [height, width] = sides;
    if (height < 0) height = width < 0 ? SIDE : Math.max(1, Math.round((width * picture.height) / picture.width));
    if (width < 0) width = Math.max(1, Math.round((height * picture.width) / picture.height));
    Object.assign(canvas, { height, width, hidden: false });
    const pen = canvas.getContext("2d", { willReadFrequently: true });
    pen.fillStyle = "white"; // under what is transparent
    pen.fillRect(0, 0, width, height);
    pen.drawImage(picture, 0, 0, width, height);
    pen.globalCompositeOperation = "difference"; // from what is drawn next
    if (inverted.checked) pen.fillRect(0, 0, width, height);
    return pen.getImageData(0, 0, width, height);
  };
  const read = async () => {
    const { data, height, width } = await draw();
    const grey = at < 0 || row[at] === 1;
    const value = (pixel, channel) => {
      const level = grey ? Math.round(0.299 * data[pixel] + 0.587 * data[pixel + 1] + 0.114 * data[pixel + 2]) : data[pixel + channel];
      return input.datatype === "UINT8" ? level : Number((level / 255).toFixed(4));
    };
    const area = height * width;
    const channels = grey ? 1 : 3;
    const values = Array.from({ length: area * channels }, (_, place) =>
      at === 0 ? value(4 * (place % area), Math.floor(place / area)) : value(4 * Math.floor(place / channels), place % channels));
    const shape = [height, width];
    if (at >= 0) shape.splice(at, 0, channels);
    return { tensor: { shape: [1, ...shape], data: values } };
  };
  for (const one of [node, inverted]) one.addEventListener("change", () => node.files.length && draw().catch(failed));
  const scale = input.datatype === "UINT8" ? "0 to 255" : "0 to 1";
  return [["a picture", [field(`Picture, scaled to the model's size, as values from ${scale}`, node), el("label", { class: "check" }, inverted, "Inverted"), canvas], read]];
}

function parsed(input, words) {
  const json = /^\s*[[{]/.test(words);
  let found;
  try {
    found = JSON.parse(json ? words : `[${words.trim().split(/[\s,;]+/).filter(Boolean).join(",")}]`);
  } catch {
    throw new Error(`${input.name}: these are no numbers with commas between them, and no JSON`);
  }
  const values = Array.isArray(found) ? found : found.inputs?.find((one) => one.name === input.name)?.data;
  if (!Array.isArray(values)) throw new Error(`${input.name}: the JSON is no list, and no request with this input`);
  if (values.flat(Infinity).some((value) => Number.isInteger(value) && !Number.isSafeInteger(value) && input.datatype.includes("INT64"))) {
    throw new Error(`${input.name}: this page takes no integers beyond 2^53`);
  }
  return values;
}

// A tensor of one row of a declared shape: a list that is nested so deep says itself how long variable axes are.
function shaped(row, values) {
  const nested = [];
  for (let part = values; Array.isArray(part); part = part[0]) nested.push(part.length);
  const data = values.flat(Infinity);
  const rest = product(row.filter((axis) => axis >= 0));
  const shape = nested.length === row.length ? nested : row.map((axis) => (axis < 0 ? Math.floor(data.length / rest) : axis));
  return { shape: [1, ...shape], data };
}

function fieldset(input) {
  const row = input.shape.slice(1);
  const offered = ways(input, row);
  const select = el("select", {}, ...offered.map(([words], value) => el("option", { value, text: words })));
  const place = el("div", { class: "fields" });
  const choose = () => place.replaceChildren(...offered[select.value][1]);
  select.addEventListener("change", choose);
  choose();
  readers.push(async () => {
    const { tensor, body } = await offered[select.value][2]();
    return { tensor: { name: input.name, datatype: input.datatype, ...tensor }, body };
  });
  const legend = `${input.name}: ${input.datatype} [${row.map((axis) => (axis < 0 ? "any" : axis)).join(", ")}]`;
  return el("fieldset", {}, el("legend", { text: legend }), offered.length > 1 ? el("div", { class: "fields" }, field("Given as", select)) : null, place);
}

// --- asking ------------------------------------------------------------------------------------------------------------

async function ask() {
  answered("asking …");
  const given = await Promise.all(readers.map((read) => read()));
  const least = byId("accuracy").value;
  const parameters = { clover_receipt: true, ...(least && { clover_min_accuracy: Number(least) }) };
  const head = new Blob([JSON.stringify({ parameters, inputs: given.map(({ tensor }) => tensor) })]);
  const bodies = given.flatMap(({ body }) => body ?? []);
  const headers = bodies.length ? { "Inference-Header-Content-Length": head.size, "Content-Type": "application/octet-stream" } : { "Content-Type": "application/json" };
  const begun = performance.now();
  const found = await call(`/v2/models/${encodeURIComponent(model.name)}/infer`, new Blob([head, ...bodies]), headers);
  answered(`Answered in ${number(performance.now() - begun)} ms, as this browser sees it.`, found.outputs, receipt(found.parameters.clover_receipt));
}

// Shows an outcome in place of the last one: what became of a question, its outputs and the lines of its receipt.
function answered(words, outputs = [], lines = []) {
  say(byId("outcome"), words);
  byId("outputs").replaceChildren(...outputs.map(output));
  byId("receipt").replaceChildren(...lines.flatMap(([term, text]) => [el("dt", { text: term }), el("dd", { text })]));
}

function output({ name, datatype, shape, data }) {
  const labels = model.outputs.find((one) => one.name === name)?.parameters?.labels;
  const values = data.flat(Infinity);
  const named = values.length === labels?.length;
  const rows = values.map((value, at) => [named ? labels[at] : at, value]);
  if (named) rows.sort(([, a], [, b]) => b - a);
  const cell = (value) => (typeof value === "number" ? { text: value.toPrecision(5).replace(/\.?0+$/, ""), class: "num" } : String(value));
  const table = el("table", {}, el("caption", { text: `${name}: ${datatype} [${shape.slice(1).join(", ")}]` }),
    el("thead", {}, el("tr", {}, el("th", { scope: "col", text: named ? "label" : "place" }), el("th", { scope: "col", class: typeof values[0] === "number" ? "num" : "", text: "value" }))), el("tbody"));
  fill(table.tBodies[0], rows.slice(0, SHOWN).map(([place, value]) => [place, cell(value)]), "empty");
  const rest = rows.length - SHOWN;
  return el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": name }, table, rest > 0 ? el("p", { class: "note", text: `and ${number(rest)} more` }) : null);
}

function receipt({ variant, path, accuracy, accuracy_method: unknown, energy_j, carbon_mg, method, intensity_g_per_kwh, intensity, intensity_state: state, pue, cached }) {
  const { method: source, replayed, provider, zone } = intensity ?? {};
  const where = [...new Set([state !== "fresh" && state, source, replayed && "of another time", provider, zone])].filter(Boolean);
  const proxy = model.parameters?.accuracy_method === "proxy";
  return [
    ["answered by", [variant, path?.some((one) => one.includes(">")) && `asked in turn: ${path.join(", ")}`, cached && "kept from an earlier request"].filter(Boolean).join("; ")],
    ["accuracy", unknown ? "not measured yet" : `${number(accuracy, 4)} % expected${proxy ? ", as agreement with the best variant" : ""}`],
    ["energy", `${energy(energy_j)} (${method})`],
    ["carbon", `${grams(known(carbon_mg) ? carbon_mg / 1000 : null)} CO₂e${pue > 1 ? `, with ${number(pue)} as overhead of the data centre` : ""}`],
    ["intensity", `${number(intensity_g_per_kwh)} gCO₂e/kWh${where.length ? ` (${where.join(", ")})` : ""}`],
  ];
}

const failed = (error) => answered(error.message);

// --- the page ----------------------------------------------------------------------------------------------------------

async function choose() {
  byId("send").disabled = true;
  const name = byId("model").value;
  const found = await call(`/v2/models/${encodeURIComponent(name)}`);
  if (byId("model").value !== name) return; // another one was chosen since
  model = found;
  readers = [];
  answered("Nothing was asked yet.");
  say(byId("about"), model.parameters?.steps?.run === "client" ? "Clients of this model run steps that this page does not have: it takes and shows the model's own tensors." : "");
  byId("inputs").replaceChildren(...model.inputs.map(fieldset));
  byId("send").disabled = false;
}

async function load() {
  const listed = await call("/v2/repository/index", '{"ready": true}', { "Content-Type": "application/json" });
  const names = [...new Set(listed.map(({ name }) => name))];
  byId("model").replaceChildren(...names.map((name) => el("option", { value: name, text: name })));
  if (names.length) await choose();
  else answered("No model is ready.");
}

byId("model").addEventListener("change", () => choose().catch(failed));
byId("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  byId("send").disabled = true;
  ask().catch(failed).finally(() => (byId("send").disabled = false));
});
setUpToken(() => load().catch(failed));
load().catch(failed);
