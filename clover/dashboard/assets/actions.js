// What an operator may do, through the server's own control API: first as a dry run, then, if confirmed, for real.

import { byId, el, say, show } from "./dom.js";
import { fixed, known } from "./figures.js";
import { authorised, token } from "./stream.js";

const VERBS = {
  pin: { label: "pin one variant", fields: ["model", "variant"], body: (form) => ({ variant: form.variant }) },
  unpin: { label: "lift a pin", path: "pin", fields: ["model"], body: () => ({ variant: null }) },
  base: { label: "pin BASE (the best variant)", fields: ["model"], body: () => ({}) },
  freeze: { label: "freeze: plan nothing", fields: ["model"], body: () => ({ on: true }) },
  unfreeze: { label: "unfreeze", path: "freeze", fields: ["model"], body: () => ({ on: false }) },
  set: { label: "set targets", fields: ["model", "accuracy_floor", "slo_ms", "mode"], body: targets },
  plan: { label: "plan anew", path: "apply", fields: ["model"], body: () => ({}) },
};
const FIELDS = ["model", "variant", "accuracy_floor", "slo_ms", "mode"];

let models = {};

function targets(form) {
  const body = {};
  for (const key of ["accuracy_floor", "slo_ms"]) {
    const text = form[key].trim().replace(",", ".");
    if (!text) continue;
    const value = Number(text);
    if (!Number.isFinite(value)) throw new Error(`${key} is not a number: ${text}`);
    body[key] = value;
  }
  if (form.mode) body.mode = form.mode;
  if (!Object.keys(body).length) throw new Error("give an accuracy floor, an SLO or a mode");
  return body;
}

export function setUp(onToken) {
  byId("verb").replaceChildren(...Object.entries(VERBS).map(([value, { label }]) => el("option", { value, text: label })));
  byId("verb").addEventListener("change", fields);
  byId("model").addEventListener("change", variants);
  byId("action").addEventListener("submit", (event) => {
    event.preventDefault();
    ask().catch((error) => say(byId("action-result"), error.message));
  });
  setUpToken(onToken);
  fields();
}

export function offer(found) {
  const names = Object.keys(found).filter((name) => found[name].planned);
  const same = names.join("\n") === Object.keys(models).join("\n");
  models = Object.fromEntries(names.map((name) => [name, found[name]]));
  if (same) return;
  byId("model").replaceChildren(...names.map((name) => el("option", { value: name, text: name })));
  variants();
  byId("action").querySelector("button").disabled = !names.length;
}

function variants() {
  const model = models[byId("model").value];
  byId("variant").replaceChildren(...Object.keys(model?.rows ?? {}).map((name) => el("option", { value: name, text: name })));
}

function fields() {
  const { fields: wanted } = VERBS[byId("verb").value];
  for (const name of FIELDS) show(byId(`field-${name}`), wanted.includes(name));
}

async function send(path, body) {
  const answer = await fetch(`/v2/clover/${path}`, {
    method: "POST",
    headers: authorised({ "Content-Type": "application/json" }),
    body: JSON.stringify(body),
  });
  const found = await answer.json().catch(() => ({}));
  if (answer.status === 401) {
    openToken(token.get() ? "The server did not take that token." : "Changes need the server's token (listen.token).");
    throw new Error("a token is needed; give it, then try again");
  }
  if (!answer.ok) throw new Error(`refused (${answer.status}): ${found.error ?? "no reason was given"}`);
  return found;
}

async function ask() {
  const form = Object.fromEntries(new FormData(byId("action")));
  const verb = VERBS[form.verb];
  const path = verb.path ?? form.verb;
  const body = { model: form.model, ...verb.body(form) };
  const button = byId("action").querySelector("button");
  button.disabled = true;
  say(byId("action-result"), "asking for a dry run …");
  try {
    const found = await send(path, { ...body, dry_run: true });
    say(byId("action-result"), "");
    const choice = await confirm(verb.label, form.model, found);
    if (choice === null) {
      say(byId("action-result"), "left as it is");
      return;
    }
    say(byId("action-result"), "being done …");
    const done = await send(path, choice.force ? { ...body, force: true } : body);
    say(byId("action-result"), `done: ${outcome(done, form.model)}`);
  } finally {
    button.disabled = false;
  }
}

// The answer about one model: `set` gives one a model, the others give it straight.
const about = (found, model) => found.models?.[model] ?? found;

function outcome(found, model) {
  const { decision, plan } = about(found, model);
  if (decision) return [decision.action, decision.detail, plan?.reason].filter(Boolean).join("; ");
  if (found.frozen !== undefined) return found.frozen ? "frozen" : "not frozen";
  return found.set ?? "it was taken";
}

function confirm(label, model, found) {
  const { decision, plan, transition } = about(found, model);
  const detail = decision?.detail ?? "";
  const refused = detail.includes("would be refused");
  say(byId("confirm-head"), `${label} · ${model}`);
  say(byId("confirm-summary"), plan?.reason ?? found.set ?? outcome(found, model));
  say(byId("confirm-refused"), detail);
  byId("confirm-refused").className = refused ? "strip bad" : "strip warn";
  show(byId("confirm-refused"), Boolean(detail));
  show(byId("confirm-force"), refused);
  byId("force").checked = false;
  byId("confirm-apply").disabled = refused;
  byId("force").onchange = () => (byId("confirm-apply").disabled = !byId("force").checked);
  const was = models[model] ?? {};
  const rows = plan
    ? [
        ["would run", plan.configuration.map((one) => `${one.count} x ${one.variant}@${one.profile}`).join(" + ")],
        ["accuracy", `${fixed(plan.prediction.accuracy, 2)} % predicted, floor ${fixed(was.accuracy_floor, 2)} %`],
        ["p95", `${fixed(plan.prediction.p95_ms, 2)} ms predicted, SLO ${fixed(was.slo_ms, 2)} ms`],
        ["energy", `${known(plan.prediction.energy_j_per_row) ? plan.prediction.energy_j_per_row.toPrecision(3) : "–"} J a row (${plan.prediction.method})`],
      ]
    : [];
  byId("confirm-facts").replaceChildren(...rows.flatMap(([term, text]) => [el("dt", { text: term }), el("dd", { text })]));
  byId("confirm-steps").replaceChildren(...(transition?.steps ?? []).map((step) => el("li", { text: stepWords(step) })));
  const dialog = byId("confirm");
  dialog.returnValue = "cancel";
  dialog.showModal();
  byId("confirm-cancel").focus();
  return new Promise((done) => {
    dialog.addEventListener("close", () => done(dialog.returnValue === "apply" ? { force: byId("force").checked } : null), { once: true });
  });
}

function stepWords({ kind, assignment, placement, routed }) {
  const place = (one) => `${one.device}:${one.profile}@${one.start}`;
  if (assignment) return `${kind} ${assignment.variant} (${assignment.backend}) on ${place(assignment.placement)}`;
  if (placement) return `${kind} ${place(placement)}`;
  return `${kind} rows to ${routed.map((one) => one.variant).join(", ")}`;
}

// --- the token ---------------------------------------------------------------------------------------------------------

export function setUpToken(onToken) {
  byId("token-button").addEventListener("click", () => openToken());
  byId("token-form").addEventListener("submit", () => {
    token.set(byId("token").value.trim());
    byId("token").value = "";
    marked();
    onToken();
  });
  byId("token-forget").addEventListener("click", () => {
    token.set("");
    byId("token-dialog").close();
    marked();
  });
  marked();
}

function marked() {
  say(byId("token-button"), token.get() ? "Token ✓" : "Token");
}

export function openToken(why = "It is kept in this tab until that is closed, and sent to this server only.") {
  say(byId("token-why"), why);
  if (!byId("token-dialog").open) byId("token-dialog").showModal();
  byId("token").focus();
}
