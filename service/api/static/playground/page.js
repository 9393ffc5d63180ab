// The page: what is chosen, what is said, and every way in for an image. What others wrote is shown
// as text, never as HTML.

import { Card, sentenced } from "./card.js";
import { key, models, Turnstile } from "./service.js";

const KEPT = 24; // cards; the oldest go, and their images with them
const AT_ONCE = 4; // requests
const SPOKEN = 30; // lines of the log

const VIEWS = {
  auto: "As many as there is time for.",
  adaptive: "The centre first; of ten, as many as the image needs.",
  "adaptive:paper": "Of the paper's 144, as many as the image needs.",
  single: "The centre. Quickest.",
  ten: "Four corners and the centre; with their mirrors, ten.",
  dense: "A larger square, fully convolutional.",
  paper: "The paper's crops of four sizes; with their mirrors, 144. Slowest.",
};

const $ = (id) => document.getElementById(id);

const cards = new Set(); // oldest first
const page = { turnstile: new Turnstile(AT_ONCE), chosen, model, say, speak, askForKey, explainsNot };
let served = { all: [], default: null };

// What is said.

function say(sentence) {
  $("message").textContent = sentence;
}

function speak(sentence) {
  const line = document.createElement("p");
  line.textContent = sentence;
  $("log").append(line);
  if ($("log").childElementCount > SPOKEN) $("log").firstElementChild.remove();
}

// What is chosen.

function model() {
  return served.all.find(({ name }) => name === $("model").value) ?? served.default;
}

function chosen() {
  const views = new FormData($("options")).get("views");
  const coverage = !$("coverage-choice").hidden && $("coverage").value;
  const other = model() !== served.default;
  return {
    ...(views && { views }), ...(coverage && { coverage }), ...(other && { model: model().name }),
  };
}

function refresh() {
  $("views-hint").textContent = VIEWS[chosen().views] ?? "";
  $("coverage-choice").hidden = !model()?.label_sets.includes(chosen().views);
  $("settings-link").href = `#${new URLSearchParams(chosen())}`;
  for (const card of cards) card.refresh();
}

function explainsNot(one) {
  one.explains = false;
  refresh();
}

function choose(one, before = chosen().views) {
  $("served").textContent =
    `${one.name} knows ${one.classes.toLocaleString("en")} labels, on ${one.device} in ${one.precision}.`;
  $("notice").textContent = one.notice ?? "";
  $("notice").hidden = !one.notice;
  const preferred = one.views.includes(before) ? before : one.default_views;
  $("views").replaceChildren(...one.views.map((views) => option(views, views === preferred)));
  refresh();
}

// What a link says of the settings; what this service does not know is left as it is by default.
function followLink() {
  const linked = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  const one = served.all.find(({ name }) => name === linked.model) ?? served.default;
  $("model").value = one.name;
  $("coverage").value = linked.coverage ?? "";
  if (!$("coverage").value) $("coverage").value = "";
  choose(one, linked.views);
}

function option(value, checked) {
  const label = document.createElement("label");
  const radio = document.createElement("input");
  Object.assign(radio, { type: "radio", name: "views", value, checked });
  radio.setAttribute("aria-describedby", "views-hint");
  label.append(radio, value);
  return label;
}

async function start() {
  try {
    served = await models();
  } catch (refusal) {
    if (refusal.status === 401) askForKey();
    else $("served").textContent = sentenced(refusal.message);
    if (refusal.wait) setTimeout(start, refusal.wait); // it is still loading its model
    return;
  }
  $("model").replaceChildren(...served.all.map(({ name }) => new Option(name, name)));
  $("model-choice").hidden = served.all.length < 2;
  $("options").hidden = false;
  followLink();
}

// A key, where one is asked for.

function askForKey() {
  if (key.get()) $("key-hint").textContent = "The service does not know this key.";
  if (!$("key").hidden) return;
  $("key").hidden = false;
  $("key-field").focus();
}

function useKey(event) {
  event.preventDefault();
  key.set($("key-field").value);
  $("key").hidden = true;
  $("choose").focus();
  if (!served.default) start();
  for (const card of cards) if (card.refusal?.status === 401) card.ask();
}

// Images come and go.

function take(files) {
  const some = [...files].slice(0, KEPT);
  if (!some.length) return;
  say(some.length < files.length ? `The first ${KEPT} of ${files.length} images were taken.` : "");
  const taken = some.map((file) => new Card(file, page));
  $("cards").prepend(...taken.map((card) => card.root));
  $("history").prepend(...taken.map((card) => card.thumbnail));
  for (const card of taken) cards.add(card);
  drop([...cards].slice(0, -KEPT));
}

function drop(some) {
  for (const card of some) {
    card.leave();
    cards.delete(card);
  }
  $("results").hidden = !cards.size;
  $("history").hidden = cards.size < 2;
}

function clear() {
  drop(cards);
  say("");
  $("choose").focus();
}

function picked(event) {
  take(event.target.files);
  event.target.value = ""; // so that the same file can be picked again
}

function pasted(event) {
  if (event.clipboardData.files.length) event.preventDefault();
  take(event.clipboardData.files);
}

function over(event) {
  event.preventDefault(); // else the browser would open what is dropped
  $("drop").classList.add("over");
}

function dropped(event) {
  event.preventDefault();
  $("drop").classList.remove("over");
  take(event.dataTransfer.files);
  if (!event.dataTransfer.files.length) say("That was no file. Save the image first, then drop it.");
}

// The camera. Browsers lend it to https and localhost alone; elsewhere a phone's own app can be asked.

const video = $("camera").querySelector("video");
let asking = false; // whether the camera may be used

async function openCamera() {
  if (!navigator.mediaDevices) {
    $("snapshot").click();
    return;
  }
  if (asking) return; // a second stream would be left open
  asking = true;
  try {
    const wanted = { video: { facingMode: "environment" } };
    video.srcObject = await navigator.mediaDevices.getUserMedia(wanted);
    $("camera").showModal();
  } catch (error) {
    const denied = error.name === "NotAllowedError";
    say(denied ? "The browser does not allow the camera." : "There is no camera that can be used.");
  } finally {
    asking = false;
  }
}

function closeCamera() {
  for (const track of video.srcObject.getTracks()) track.stop();
  video.srcObject = null;
}

function shoot() {
  if (!video.videoWidth) return; // there is no image yet
  const canvas = document.createElement("canvas");
  Object.assign(canvas, { width: video.videoWidth, height: video.videoHeight });
  canvas.getContext("2d").drawImage(video, 0, 0);
  $("camera").close();
  canvas.toBlob((blob) => take([new File([blob], "camera.jpg", { type: blob.type })]), "image/jpeg");
}

$("choose").onclick = () => $("files").click();
$("drop").onclick = (event) => { if (!event.target.closest("button, input")) $("files").click(); };
$("files").onchange = picked;
$("snapshot").onchange = picked;
$("use-camera").onclick = openCamera;
$("shoot").onclick = shoot;
$("close-camera").onclick = () => $("camera").close();
$("camera").onclose = closeCamera;
$("clear").onclick = clear;
$("key").onsubmit = useKey;
$("views").onchange = refresh;
$("coverage").onchange = refresh;
$("model").onchange = () => choose(model());
window.onhashchange = () => { if (served.default) followLink(); };
document.onpaste = pasted;
document.ondragover = over;
document.ondragleave = (event) => { if (!event.relatedTarget) $("drop").classList.remove("over"); };
document.ondrop = dropped;

start();
