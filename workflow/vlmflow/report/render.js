// Filters of the gallery. A filter is a link: index.html#show=worse&q=seven
const PAGE = 24; // cards at first; each further step doubles what is there
const samples = JSON.parse(byId("samples").textContent);
const severalEvaluations = new Set(samples.map((sample) => sample.evaluation)).size > 1;
const group = (sample) => [severalEvaluations && sample.evaluation, sample.category].filter(Boolean).join(": ");
const place = (sample) => `${sample.evaluation}/${sample.id}`;
const haystacks = samples.map((sample) =>
  [sample.id, sample.category, sample.question, sample.reference, ...(sample.also ?? []), sample.before, sample.after]
    .join("\n").toLowerCase());
const buttons = [...document.querySelectorAll("[data-show]")];
let found = [];
let shown = 0;
let only = ""; // the one sample that a link names

const marking = () => byId("marking").value;

function showMore() {
  const step = Math.max(PAGE, shown);
  byId("cards").append(...found.slice(shown, shown + step).map((index) => card(samples[index], marking(), 170)));
  shown = Math.min(shown + step, found.length);
  const records = `${found.length.toLocaleString("en")} ${found.length === 1 ? "record" : "records"}`;
  const part = shown < found.length ? `${shown.toLocaleString("en")} of ${records}` : records;
  byId("status").textContent = found.length ? part : "No record matches.";
  byId("more").hidden = shown === found.length;
}

function wanted() {
  return {
    show: buttons.find((button) => button.getAttribute("aria-pressed") === "true").dataset.show,
    group: byId("group").value,
    q: byId("query").value.trim().toLowerCase(),
    cut: byId("cut").checked ? "1" : "",
    sample: only,
  };
}

// Shows what the filters let through, counts for each button what it would show, and returns the filters for the address.
function filter() {
  const want = wanted();
  const matching = [...samples.keys()].filter((index) => {
    const sample = samples[index];
    return (!want.group || [sample.evaluation, group(sample)].includes(want.group)) &&
      (!want.cut || sample.cut) && (!want.sample || place(sample) === want.sample) &&
      (!want.q || haystacks[index].includes(want.q));
  });
  for (const button of buttons) {
    const show = button.dataset.show;
    const count = show ? matching.filter((index) => samples[index].outcome === show).length : matching.length;
    button.querySelector("b").textContent = count.toLocaleString("en");
  }
  found = matching.filter((index) => !want.show || samples[index].outcome === want.show);
  shown = 0;
  byId("cards").replaceChildren();
  showMore();
  const set = Object.entries(want).filter(([, value]) => value);
  byId("clear").hidden = !set.length;
  return new URLSearchParams(set);
}

function press(show) {
  for (const button of buttons) button.setAttribute("aria-pressed", String(button.dataset.show === show));
}

function setFilters(want) {
  const show = want.get("show");
  press(buttons.some((button) => button.dataset.show === show) ? show : "");
  byId("query").value = want.get("q") ?? "";
  byId("group").value = want.get("group") ?? "";
  if (byId("group").selectedIndex < 0) byId("group").value = "";
  byId("cut").checked = want.has("cut");
  only = want.get("sample") ?? "";
}

// Shows what an address asks for; whether it asks for anything here.
function follow(hash) {
  const want = new URLSearchParams(hash.slice(1));
  if (!["show", "group", "q", "cut", "sample"].some((key) => want.has(key))) return false;
  viewer.close();
  setFilters(want);
  filter();
  byId("answers").scrollIntoView();
  return true;
}

function remember(hash, how) {
  try {
    history[how](null, "", hash);
  } catch {
    // a page shown inside another one (snakemake --report) may not change its address
  }
}

// Not left to the browser: inside another page it may refuse to follow a link of a file.
function followLink(event) {
  const link = event.target.closest("a[href^='#']");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey || !follow(link.hash)) return;
  event.preventDefault();
  remember(link.hash, "pushState");
}

function changed() {
  remember(`#${filter()}`, "replaceState");
}

function chosen() {
  only = "";
  changed();
}

function fillGroups() {
  const evaluations = severalEvaluations ? samples.map((sample) => sample.evaluation) : [];
  const groups = [...new Set([...evaluations, ...samples.map(group)])].filter(Boolean).sort();
  byId("group").append(
    new Option(severalEvaluations ? "Every evaluation" : "Every category", ""), ...groups.map((name) => new Option(name, name)));
  byId("group").hidden = groups.length < 2;
  byId("cut").parentElement.hidden = !samples.some((sample) => sample.cut);
}

function listen() {
  for (const button of buttons) {
    button.addEventListener("click", () => { press(button.dataset.show); chosen(); });
  }
  byId("query").addEventListener("input", chosen);
  for (const name of ["group", "cut"]) byId(name).addEventListener("change", chosen);
  byId("marking").addEventListener("change", changed);
  byId("clear").addEventListener("click", () => { setFilters(new URLSearchParams()); changed(); });
  byId("more").addEventListener("click", showMore);
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  document.addEventListener("click", followLink);
  window.addEventListener("hashchange", () => follow(location.hash));
  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest("input, select, textarea, dialog");
    if (event.key !== "/" || typing || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    byId("query").focus();
  });
  document.addEventListener("DOMContentLoaded", () => { if (waiting) filter(); });
}

fillGroups();
listen();
startViewer();
byId("filters").hidden = false;
filter();
follow(location.hash);
