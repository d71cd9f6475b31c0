// One sample, large, over the page: arrow keys go to the next one, Escape closes it.
const viewer = byId("viewer");
let viewed = 0; // position in `found`

function view(position) {
  viewed = Math.max(0, Math.min(position, found.length - 1));
  const sample = samples[found[viewed]];
  const large = card(sample, marking(), Math.min(560, innerHeight * 0.6), false);
  if (sample.files) {
    const files = element("p", "files", "Files: ");
    sample.files.forEach(([name, href], index) => files.append(index ? ", " : "", Object.assign(element("a", "", name), { href })));
    large.querySelector(".body").append(files);
  }
  byId("viewed").replaceChildren(large);
  byId("place").textContent = `${(viewed + 1).toLocaleString("en")} of ${found.length.toLocaleString("en")}`;
  byId("previous").disabled = viewed === 0;
  byId("next").disabled = viewed === found.length - 1;
  if (!viewer.open) viewer.showModal();
}

function startViewer() {
  byId("cards").addEventListener("click", (event) => {
    const button = event.target.closest("button.pictures");
    if (button) view([...byId("cards").children].indexOf(button.parentElement));
  });
  byId("previous").addEventListener("click", () => view(viewed - 1));
  byId("next").addEventListener("click", () => view(viewed + 1));
  byId("close").addEventListener("click", () => viewer.close());
  viewer.addEventListener("click", (event) => { if (event.target === viewer) viewer.close(); });
  viewer.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    event.preventDefault();
    view(viewed + step);
  });
  viewer.addEventListener("close", () => byId("cards").children[viewed]?.querySelector("button")?.focus());
}
