// Numbers as people read them, each with its unit.

const plain = (value, digits) => value.toLocaleString("en-GB", { maximumSignificantDigits: digits }).replace("-", "−");

export const known = (value) => value !== null && value !== undefined && Number.isFinite(value);

export function number(value, digits = 3) {
  if (!known(value)) return "–";
  return Math.abs(value) >= 10 ** digits ? Math.round(value).toLocaleString("en-GB") : plain(value, digits);
}

export const fixed = (value, places) => (known(value) ? value.toFixed(places).replace("-", "−") : "–");

const MASSES = [[1e6, "t"], [1e3, "kg"], [1, "g"], [1e-3, "mg"], [1e-6, "µg"]];

// [figure, unit] of grams.
export function mass(grams) {
  if (!known(grams)) return ["–", "g"];
  const size = Math.abs(grams);
  const [unit, name] = MASSES.find(([least]) => size >= least) ?? (size ? MASSES[4] : MASSES[2]);
  return [number(grams / unit), name];
}

export const grams = (value) => mass(value).join(" ");

export const part = (value) => (known(value) ? `${fixed(100 * value, 1)} %` : "–");

export function energy(joules) {
  if (!known(joules)) return "–";
  return joules < 1e5 ? `${number(joules)} J` : `${number(joules / 3.6e6)} kWh`;
}

export function age(seconds) {
  if (!known(seconds)) return "–";
  if (seconds < 120) return `${Math.round(seconds)} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172800) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86400)} d`;
}

const two = (value) => String(value).padStart(2, "0");

// Unix seconds as plotly takes them: it knows no time zones, so this is the browser's.
export function moment(seconds) {
  const at = new Date(1000 * seconds);
  return `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())} ` +
    `${two(at.getHours())}:${two(at.getMinutes())}:${two(at.getSeconds())}`;
}

export const clock = (seconds) => moment(seconds).slice(11);

// The time of day; of another day, with its date.
export function when(seconds) {
  const text = moment(seconds);
  return text.slice(0, 10) === moment(Date.now() / 1000).slice(0, 10) ? text.slice(11) : text.slice(5, 16);
}
