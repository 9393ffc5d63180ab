// What this page asks of the service, and how. Addresses are relative: it may lie below a path.

// An answer that is none: `sentence` says why, `wait` is in ms where the service told one.
export class Refusal extends Error {
  constructor(sentence, { status = 0, wait = 0 } = {}) {
    super(sentence);
    this.status = status;
    this.wait = wait;
  }

  // Whether the same request may be answered another time: 0 is no answer at all.
  get passes() {
    return [0, 401, 408, 429].includes(this.status) || this.status >= 500;
  }
}

// The key is this tab's and ends with it; some browsers forbid even that store.
let secret = null;
try { secret = sessionStorage.getItem("key"); } catch { /* until a reload, then */ }

export const key = {
  get: () => secret,
  set: (value) => {
    secret = value;
    try { sessionStorage.setItem("key", value); } catch { /* the same */ }
  },
};

// `read` makes of a response what is wanted of it.
async function ask(path, read, options = {}) {
  const headers = { ...options.headers, ...(secret && { "X-API-Key": secret }) };
  try {
    const response = await fetch(path, { ...options, headers });
    if (response.ok) return await read(response);
    throw await refusal(response);
  } catch (error) {
    if (error instanceof Refusal || error.name === "AbortError") throw error;
    throw new Refusal("There was no answer: the service cannot be reached, or the file not read.");
  }
}

// Whatever stands in between may answer, too, and knows nothing of problems.
async function refusal(response) {
  const { status, statusText } = response;
  const problem = await response.json().catch(() => ({}));
  const sentence = problem.detail ?? `The answer was ${status} ${statusText}`;
  return new Refusal(sentence, { status, wait: problem.retry_after_ms });
}

export async function models() {
  const answer = await ask("models", (response) => response.json());
  const chosen = answer.models.find((one) => one.name === answer.default) ?? answer.models[0];
  return { all: answer.models, default: chosen };
}

// `how` has `views` and, unless it is the default one, `model`.
const address = (route, how) => `${route}?${new URLSearchParams(how)}`.replace(/\?$/, "");

function form(file) {
  const body = new FormData();
  body.append("file", file, file.name);
  return body;
}

export function classify(file, how, signal) {
  return ask(address("classify", how), answered, { method: "POST", body: form(file), signal });
}

async function answered(response) {
  return { ...await response.json(), timing: timing(response.headers.get("Server-Timing")) };
}

export function heat(file, how, signal) {
  const headers = { Accept: "image/png" };
  const options = { method: "POST", body: form(file), headers, signal };
  return ask(address("explain", how), (response) => response.blob(), options);
}

// `decode;dur=2.1, batch;desc="16 rows"` to [{name: "decode", ms: 2.1}, ...] and "16 rows".
function timing(header) {
  const entries = [...(header ?? "").matchAll(/(\w+);(?:dur=([\d.]+)|desc="([^"]*)")/g)];
  return {
    stages: entries.filter(([, , ms]) => ms).map(([, name, ms]) => ({ name, ms: Number(ms) })),
    rows: entries.find(([, name]) => name === "batch")?.[3],
  };
}

const quoted = (text) => `'${text.replaceAll("'", `'\\''`)}'`;

// In curl's own syntax a name with `;`, `,` or `"` must stand in quotes.
const inForm = (name) => /^[\w. -]+$/.test(name) ? name : `"${name.replace(/[\\"]/g, "\\$&")}"`;

export function curl(file, how) {
  const named = secret ? ['-H "X-API-Key: $KEY"'] : []; // never the key itself: it would be copied
  const url = new URL(address("classify", how), document.baseURI).href;
  return ["curl", ...named, "-F", quoted(`file=@${inForm(file.name)}`), quoted(url)].join(" ");
}

// Lets so many through at a time, first come first served.
export class Turnstile {
  constructor(free) {
    this.free = free;
    this.waiting = [];
  }

  async pass(work) {
    if (this.free) this.free -= 1;
    else await new Promise((resolve) => this.waiting.push(resolve));
    try {
      return await work();
    } finally {
      const next = this.waiting.shift();
      if (next) next();
      else this.free += 1;
    }
  }
}
