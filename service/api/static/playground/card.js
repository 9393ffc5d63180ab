// One image and its answer. `page` is what a card has to know of the page that it lies on.

import { classify, curl, heat, Refusal } from "./service.js";

const NO_SUCH = [404, 405, 501]; // the statuses of a route, or of a model, that explains nothing

const made = (template) => document.getElementById(template).content.firstElementChild.cloneNode(true);
const NBSP = "\u00a0"; // no line ends between a number and its unit
const shown = (share) => share < 0.001 ? "< 0.1" : share >= 0.9995 ? "> 99.9" : (100 * share).toFixed(1);
const percent = (share) => `${shown(share)} %`.replaceAll(" ", NBSP);
const milliseconds = (ms) => `${ms < 10 ? ms.toFixed(1) : Math.round(ms)}${NBSP}ms`;
const seconds = (ms) => `${Math.ceil(ms / 1000)}${NBSP}s`;
const list = (words) => words.length < 2 ? words.join() : `${words.slice(0, -1).join(", ")} or ${words.at(-1)}`;
export const sentenced = (text) => text[0].toUpperCase() + text.slice(1) + (text.endsWith(".") ? "" : ".");

export class Card {
  constructor(file, page) {
    this.file = file;
    this.page = page;
    this.root = made("card");
    this.thumbnail = made("thumbnail");
    this.leaving = new AbortController();
    this.original = URL.createObjectURL(file);
    this.find("h3").textContent = file.name;
    this.find("article").setAttribute("aria-label", file.name);
    this.find("img").alt = file.name;
    this.find("img").onerror = () => this.preview(false);
    this.thumbnail.querySelector("img").src = this.original;
    this.thumbnail.querySelector("img").onerror = (event) => { event.target.hidden = true; };
    this.thumbnail.querySelector("button").setAttribute("aria-label", file.name);
    this.thumbnail.querySelector("button").onclick = () => this.reveal();
    this.find(".again").onclick = () => this.again();
    this.find(".heat").onclick = () => this.toggleHeat();
    this.find(".copy").onclick = () => this.copy();
    this.ask();
  }

  find(selector) {
    return this.root.querySelector(selector);
  }

  async ask() {
    this.how = this.page.chosen();
    this.model = this.page.model();
    this.refusal = null;
    this.dropHeat();
    this.show("waiting", "Waits for its turn…");
    try {
      this.answered(await this.page.turnstile.pass(() => {
        this.leaving.signal.throwIfAborted();
        this.show("asking", "Looking…");
        return classify(this.file, this.how, this.leaving.signal);
      }));
    } catch (error) {
      if (this.leaving.signal.aborted) return;
      if (!(error instanceof Refusal)) throw error;
      this.refused(error);
    }
  }

  // `state` is for the style sheet, too; what may be there in some states only is hidden at first.
  show(state, sentence) {
    clearTimeout(this.ticking);
    this.root.dataset.state = state;
    this.root.setAttribute("aria-busy", String(["waiting", "asking"].includes(state)));
    this.find(".state").textContent = sentence;
    this.find("code").textContent = curl(this.file, this.how);
    for (const part of [".labels", ".set", ".time", ".again", ".heat"]) this.find(part).hidden = true;
    this.find(".command").hidden = state === "waiting";
  }

  answered({ model, predictions, views, view_count: count, label_set: set, timing }) {
    this.views = views; // that were taken, whatever was asked for
    this.how.views ??= views;
    this.show("answered", `${model}, ${looked(views, count)}`);
    this.find(".labels").replaceChildren(...predictions.map(labelled));
    this.find(".labels").hidden = false;
    this.find(".set").hidden = !set;
    this.find(".set").textContent = set ? covered(set) : "";
    this.showTime(timing);
    this.refresh();
    const [first] = predictions;
    this.page.speak(`${this.file.name}: ${first.label}, ${percent(first.probability)}`);
  }

  showTime({ stages, rows }) {
    const total = stages.reduce((sum, { ms }) => sum + ms, 0);
    if (!total) return;
    const parts = stages.map(({ name, ms }) => {
      const [part, words] = [document.createElement("span"), document.createElement("span")];
      part.className = words.className = name;
      part.style.flexGrow = ms / total;
      const batch = name === "inference" && rows ? `, in a batch of ${rows}` : "";
      words.textContent = `${name} ${milliseconds(ms)}${batch}`;
      return [part, words];
    });
    this.find(".time summary").textContent = `Time: ${milliseconds(total)}`;
    this.find(".stages").replaceChildren(...parts.map(([part]) => part));
    this.find(".legend").replaceChildren(...parts.map(([, words]) => words));
    this.find(".time").hidden = false;
  }

  refused(refusal) {
    this.refusal = refusal;
    const wait = refusal.wait ? ` Come again in ${seconds(refusal.wait)}.` : "";
    const sentence = sentenced(refusal.message) + wait;
    this.show("refused", sentence);
    this.page.speak(`${this.file.name}: ${sentence}`);
    if (refusal.passes) this.allowAgain(performance.now() + refusal.wait);
    if (refusal.status === 401) this.page.askForKey();
  }

  // Until it is `due` the button can be reached all the same: disabled, it would lose the focus.
  allowAgain(due) {
    const left = due - performance.now();
    this.offerAgain(left > 0 ? `Try again in ${seconds(left)}` : "Try again", left <= 0);
    if (left > 0) this.ticking = setTimeout(() => this.allowAgain(due), left % 1000 || 1000);
  }

  offerAgain(words, allowed) {
    const button = this.find(".again");
    button.textContent = words;
    button.hidden = false;
    button.setAttribute("aria-disabled", String(!allowed));
  }

  again() {
    if (this.find(".again").getAttribute("aria-disabled") === "true") return;
    this.focus(); // the button goes, the focus stays near
    this.ask();
  }

  focus() {
    this.root.tabIndex = -1;
    this.root.focus({ preventScroll: true });
  }

  reveal() {
    this.focus();
    this.root.scrollIntoView({ block: "nearest" });
  }

  // What is chosen by now may be asked of the same image; and models turn out not to explain.
  refresh() {
    if (this.root.dataset.state !== "answered") return;
    this.find(".heat").hidden = !this.model?.explains;
    const now = this.page.chosen();
    const [views, model, coverage] = ["views", "model", "coverage"].map((key) => now[key] !== this.how[key]);
    const other = model ? `${this.page.model().name}, ` : "";
    const set = coverage ? `, ${now.coverage ? "a" : "no"} set` : "";
    this.offerAgain(`Again with ${other}${now.views}${set}`, true);
    this.find(".again").hidden = !views && !model && !coverage;
  }

  async toggleHeat() {
    if (this.find(".heat").hasAttribute("aria-busy")) return;
    const on = this.find(".heat").getAttribute("aria-pressed") === "false";
    const { how } = this;
    try {
      const blob = on && !this.heated && await this.explained();
      if (how !== this.how) return; // it has been asked anew meanwhile
      if (blob) this.heated = URL.createObjectURL(blob);
    } catch (error) {
      if (this.leaving.signal.aborted) return;
      if (!(error instanceof Refusal)) throw error;
      if (NO_SUCH.includes(error.status)) this.page.explainsNot(this.model);
      this.page.say(`No heat map: ${error.message}.`);
      return;
    }
    this.find(".heat").setAttribute("aria-pressed", String(on));
    this.preview(on ? this.heated : this.original);
  }

  async explained() {
    // 144 maps take seconds, and their mean looks as that of ten does; adaptive views have none.
    const views = /paper|adaptive/.test(this.views) ? "ten" : this.views;
    const how = { views, ...(this.how.model && { model: this.how.model }) };
    this.find(".heat").setAttribute("aria-busy", "true");
    try {
      return await this.page.turnstile.pass(() => heat(this.file, how, this.leaving.signal));
    } finally {
      this.find(".heat").removeAttribute("aria-busy");
    }
  }

  dropHeat() {
    if (this.heated) URL.revokeObjectURL(this.heated);
    this.heated = undefined;
    this.find(".heat").setAttribute("aria-pressed", "false");
    this.preview(this.original);
  }

  // Images that the service reads and the browser does not (TIFF, say) get their answer all the same.
  preview(url) {
    if (url) this.find("img").src = url;
    this.find("img").hidden = !url;
    this.find(".no-preview").hidden = Boolean(url);
  }

  async copy() {
    const button = this.find(".copy");
    try {
      await navigator.clipboard.writeText(this.find("code").textContent);
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = "Copy"; }, 2000);
    } catch { // browsers lend the clipboard to https and localhost alone
      getSelection().selectAllChildren(this.find("code"));
      button.textContent = "Selected: press Ctrl+C";
    }
  }

  leave() {
    this.leaving.abort();
    clearTimeout(this.ticking);
    this.root.remove();
    this.thumbnail.remove();
    for (const url of [this.original, this.heated]) if (url) URL.revokeObjectURL(url);
  }
}

// What was looked at, as "3 of ten views" or "144 views (paper)".
function looked(views, count) {
  if (count === 1) return "one view";
  const all = { adaptive: "ten", "adaptive:paper": 144 }[views];
  return all ? `${count} of ${all} views` : `${count} views (${views})`;
}

function covered({ coverage, size, labels, abstention }) {
  const sure = `With ${Number((100 * coverage).toPrecision(3))}${NBSP}% coverage:`;
  if (abstention === "empty") return `${sure} no label is probable enough.`;
  if (abstention) return `${sure} too many labels to tell, ${size}.`;
  return `${sure} ${list(labels.map(({ label }) => label))}.`;
}

// The first label has its three nearest broader ones, as "dog > hunting dog > hound > beagle".
function labelled({ label, probability, broader }, place) {
  const row = made("label");
  const path = row.querySelector(".path");
  path.hidden = place > 0 || !broader;
  path.textContent = [label, ...(broader ?? []).slice(0, 3)].reverse().join(" > ");
  row.querySelector(".name").textContent = label;
  row.querySelector(".share").textContent = percent(probability);
  row.querySelector(".bar").style.setProperty("--share", probability);
  return row;
}
