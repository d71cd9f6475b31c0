"use strict";
// Texts come from data and models: they are only ever set as textContent.
const PAGE = 24; // cards that are added at a time
const OUTCOMES = { worse: "Got worse", still_wrong: "Still wrong", improved: "Improved", right: "Right both times" };
const byId = (id) => document.getElementById(id);
const samples = JSON.parse(byId("samples").textContent);
const severalEvaluations = new Set(samples.map((sample) => sample.evaluation)).size > 1;
const group = (sample) => [severalEvaluations && sample.evaluation, sample.category].filter(Boolean).join(": ");
const haystacks = samples.map((sample) =>
  [sample.id, sample.category, sample.question, sample.reference, sample.before, sample.after].join("\n").toLowerCase());
const blocks = [];
let found = [];
let shown = 0;

// Pictures lie in blocks of JSON that are parsed when one of them is needed.
function picture(number) {
  const size = Number(byId("cards").dataset.block);
  const block = Math.floor(number / size);
  blocks[block] ??= JSON.parse(byId(`pictures-${block}`).textContent);
  return blocks[block][number % size];
}

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function answer(text, score) {
  const kind = score === 1 ? "right" : score === 0 ? "wrong" : "partial";
  const made = element("dd", text ? kind : `${kind} empty`, text || "no answer");
  made.dataset.score = score.toFixed(2);
  return made;
}

function card(sample) {
  const made = element("article");
  const tiny = Number(byId("cards").dataset.tiny);
  if (sample.pictures.length) {
    const frame = element("div", "pictures");
    for (const number of sample.pictures) {
      const [source, width, height] = picture(number);
      const image = element("img", Math.max(width, height) <= tiny ? "tiny" : "");
      Object.assign(image, { loading: "lazy", decoding: "async", width, height, alt: `picture of ${sample.id}`, src: source });
      frame.append(image);
    }
    made.append(frame);
  }
  const body = element("div", "body");
  const meta = element("p", "meta");
  meta.append(element("span", `outcome ${sample.outcome}`, OUTCOMES[sample.outcome]), element("span", "", sample.id));
  const list = element("dl");
  list.append(
    element("dt", "", "Reference"), element("dd", "reference", sample.reference),
    element("dt", "", "Before"), answer(sample.before, sample.scores[0]),
    element("dt", "", "After"), answer(sample.after, sample.scores[1]));
  body.append(meta, element("p", "question", sample.question), list);
  made.append(body);
  return made;
}

function showMore() {
  byId("cards").append(...found.slice(shown, shown + PAGE).map((index) => card(samples[index])));
  shown = Math.min(shown + PAGE, found.length);
  const records = `${found.length.toLocaleString("en")} ${found.length === 1 ? "record" : "records"}`;
  byId("status").textContent = shown < found.length ? `${shown} of ${records}` : found.length ? records : "No record matches.";
  byId("more").hidden = shown === found.length;
}

function filter() {
  const show = document.querySelector("[data-show][aria-pressed=true]").dataset.show;
  const query = byId("query").value.trim().toLowerCase();
  const chosen = byId("group").value;
  found = [...samples.keys()].filter((index) =>
    (!show || samples[index].outcome === show) &&
    (!chosen || [samples[index].evaluation, group(samples[index])].includes(chosen)) &&
    (!query || haystacks[index].includes(query)));
  shown = 0;
  byId("cards").replaceChildren();
  showMore();
  return new URLSearchParams(Object.entries({ show, group: chosen, q: query }).filter(([, value]) => value));
}

function press(show) {
  for (const button of document.querySelectorAll("[data-show]")) {
    button.setAttribute("aria-pressed", String(button.dataset.show === show));
  }
}

// A filter is a link: index.html#show=worse&q=seven
function followHash() {
  const wanted = new URLSearchParams(location.hash.slice(1));
  if (!["show", "group", "q"].some((key) => wanted.has(key))) return;
  press(wanted.get("show") in OUTCOMES ? wanted.get("show") : "");
  byId("query").value = wanted.get("q") ?? "";
  byId("group").value = wanted.get("group") ?? "";
  filter();
  byId("answers").scrollIntoView();
}

function changed() {
  const address = `#${filter()}`;
  try {
    history.replaceState(null, "", address);
  } catch {
    // a page shown inside another one (snakemake --report) may not change its address
  }
}

function start() {
  const evaluations = severalEvaluations ? samples.map((sample) => sample.evaluation) : [];
  const groups = [...new Set([...evaluations, ...samples.map(group)])].filter(Boolean).sort();
  if (groups.length > 1) {
    byId("group").append(new Option(severalEvaluations ? "Every evaluation" : "Every category", ""), ...groups.map((name) => new Option(name, name)));
    byId("group").hidden = false;
  }
  for (const button of document.querySelectorAll("[data-show]")) {
    button.addEventListener("click", () => { press(button.dataset.show); changed(); });
  }
  byId("query").addEventListener("input", changed);
  byId("group").addEventListener("change", changed);
  byId("more").addEventListener("click", showMore);
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  window.addEventListener("hashchange", followHash);
  byId("filters").hidden = false;
  filter();
  followHash();
}

start();
