// The stream of server-sent events, read with fetch: an EventSource could send no token.
//
// It comes back by itself, after the time that the server asks for, then ever more seldom; and it takes a stream that
// says nothing for a while for a dead one.

const SILENT_MS = 9000;
const LONGEST_MS = 20000;
const HIDDEN_MS = 120000;
const KEY = "clover-token";

export const token = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (text) => (text ? sessionStorage.setItem(KEY, text) : sessionStorage.removeItem(KEY)),
};

export function authorised(fields = {}) {
  const own = token.get();
  return own ? { ...fields, Authorization: `Bearer ${own}` } : fields;
}

export class Stream {
  // onEvent(name, document), onState(state, words), onRefused() when the token is missing or wrong.
  constructor(address, { onEvent, onState, onRefused }) {
    Object.assign(this, { address, onEvent, onState, onRefused });
    this.retryMs = 2000;
    this.failures = 0;
    this.controller = null;
    this.timer = 0;
    this.silence = 0;
    this.hiding = 0;
    document.addEventListener("visibilitychange", () => this.#seen());
    addEventListener("online", () => this.start());
  }

  start() {
    this.stop();
    const controller = (this.controller = new AbortController());
    this.#read(controller).catch((error) => {
      if (this.controller === controller) this.#again(error.words ?? "the server does not answer", error.waitMs);
    });
  }

  stop() {
    clearTimeout(this.timer);
    clearTimeout(this.silence);
    this.controller?.abort();
    this.controller = null;
  }

  #seen() {
    clearTimeout(this.hiding);
    if (document.visibilityState === "hidden") {
      this.hiding = setTimeout(() => {
        this.stop();
        this.onState("paused", "paused while hidden");
      }, HIDDEN_MS);
    } else if (this.controller === null) {
      this.start();
    }
  }

  #again(words, waitMs) {
    this.stop();
    this.failures += 1;
    const wait = waitMs ?? Math.min(LONGEST_MS, this.retryMs * 1.6 ** (this.failures - 1)) * (0.8 + 0.4 * Math.random());
    this.onState("stale", words);
    this.timer = setTimeout(() => this.start(), wait);
  }

  #heard(controller) {
    clearTimeout(this.silence);
    this.silence = setTimeout(() => {
      if (this.controller === controller) this.#again("the server has gone silent");
    }, SILENT_MS);
  }

  async #read(controller) {
    this.#heard(controller);
    const answer = await fetch(this.address, { headers: authorised(), signal: controller.signal, cache: "no-store" });
    if (answer.status === 401) {
      this.stop();
      this.onState("stale", "a token is needed");
      this.onRefused();
      return;
    }
    if (!answer.ok) {
      const text = await answer.json().then((body) => body.error, () => `answer ${answer.status}`);
      const seconds = Number(answer.headers.get("Retry-After"));
      throw Object.assign(new Error(text), { words: text, waitMs: seconds ? 1000 * seconds : undefined });
    }
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) throw Object.assign(new Error("ended"), { words: "the server ended the connection" });
      this.#heard(controller);
      const parts = (rest + value).split("\n\n");
      rest = parts.pop();
      for (const message of parts) this.#take(message);
    }
  }

  #take(message) {
    let name = "message";
    let data = "";
    for (const line of message.split("\n")) {
      const at = line.indexOf(":");
      const value = line.slice(at + 1).trimStart();
      if (line.startsWith("event")) name = value;
      else if (line.startsWith("data")) data += value;
      else if (line.startsWith("retry")) this.retryMs = Number(value) || this.retryMs;
    }
    if (!data) return;
    this.failures = 0;
    this.onState("live", "live");
    this.onEvent(name, JSON.parse(data));
  }
}
