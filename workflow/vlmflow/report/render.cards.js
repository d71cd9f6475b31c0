// A sample as a card. Texts come from data and models: they are only ever set as textContent.
const SVG = "http://www.w3.org/2000/svg";
const byId = (id) => document.getElementById(id);
const OUTCOMES = Object.fromEntries([...document.querySelectorAll("[data-show]")].map(({ dataset }) => [dataset.show, dataset.name]));
const blocks = [];
let waiting = false; // for pictures that the browser has not read yet

// Pictures lie in blocks of JSON that are parsed when one of them is needed.
function picture(number) {
  const size = Number(byId("cards").dataset.block);
  const block = Math.floor(number / size);
  if (!blocks[block]) {
    const holder = byId(`pictures-${block}`);
    if (!holder) waiting = true;
    else blocks[block] = JSON.parse(holder.textContent);
  }
  return blocks[block]?.[number % size];
}

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

// The boxes of the reference and of both answers over a picture, in thousandths of its sides.
function overlay(boxes) {
  const made = document.createElementNS(SVG, "svg");
  made.setAttribute("viewBox", "0 0 1000 1000");
  made.setAttribute("preserveAspectRatio", "none");
  made.setAttribute("class", "boxes");
  made.setAttribute("aria-hidden", "true");
  for (const [kind, drawn] of Object.entries(boxes)) {
    for (const [x1, y1, x2, y2] of drawn) {
      const box = document.createElementNS(SVG, "rect");
      const place = { x: x1, y: y1, width: x2 - x1, height: y2 - y1, class: kind };
      for (const [key, value] of Object.entries(place)) box.setAttribute(key, value);
      made.append(box);
    }
  }
  return made;
}

function frame(sample, height, enlarges) {
  const made = element(enlarges ? "button" : "div", "pictures", sample.pictures.length ? "" : "no picture");
  if (enlarges) Object.assign(made, { type: "button", title: "Enlarge" });
  made.style.setProperty("--height", `${height}px`);
  const tiny = Number(byId("cards").dataset.tiny);
  sample.pictures.forEach((number, position) => {
    const [src, wide, high] = picture(number) ?? [];
    if (!src) return;
    const shot = element("span", "shot");
    shot.style.setProperty("--ratio", wide / high);
    const alt = sample.pictures.length > 1 ? `picture ${position + 1} of ${sample.id}` : `picture of ${sample.id}`;
    const image = element("img", Math.max(wide, high) <= tiny ? "tiny" : "");
    Object.assign(image, { decoding: "async", width: wide, height: high, alt, src });
    shot.append(image);
    if (sample.boxes) shot.append(overlay(sample.boxes));
    made.append(shot);
  });
  return made;
}

// The term of a text, with the line that its boxes are drawn with.
function term(sample, kind, text) {
  const made = element("dt", "", text);
  if (sample.boxes?.[kind]?.length) made.prepend(element("i", `line ${kind}`));
  return made;
}

// A text in its own direction, whatever stands beside it.
function block(text) {
  const made = element("div", "text", text);
  made.dir = "auto";
  return made;
}

function answer(sample, kind, other) {
  const text = sample[kind];
  const [mark, score] = sample.scores[kind];
  const made = element("dd", mark);
  made.dataset.score = score;
  const said = block(text ? "" : "no answer");
  if (!text) said.classList.add("empty");
  else if (!other || other === text) said.textContent = text;
  else said.append(...differences(text, other).map(([part, differs]) => (differs ? element("mark", kind, part) : part)));
  made.append(element("span", "aside", mark === "partial" ? `score ${score}: ` : `${mark}: `), said);
  if (sample.cut?.includes(kind)) made.append(element("span", "cut", "cut off at the token limit"));
  return made;
}

function described(text) {
  const made = element("dd");
  made.append(block(text));
  return made;
}

function texts(sample, marking) {
  const list = element("dl");
  list.append(term(sample, "reference", "Reference"), described(sample.reference));
  if (sample.also) list.append(element("dt", "", "Also right"), described(sample.also.join(" · ")));
  for (const [kind, name, other] of [["before", "Before", "after"], ["after", "After", "before"]]) {
    const against = { answers: sample[other], reference: sample.reference }[marking];
    list.append(term(sample, kind, name), answer(sample, kind, against));
  }
  return list;
}

const address = (sample) => `#${new URLSearchParams({ sample: `${sample.evaluation}/${sample.id}` })}`;

function card(sample, marking, height, enlarges = true) {
  const made = element("article");
  made.append(frame(sample, height, enlarges));
  const body = element("div", "body");
  const meta = element("p", "meta");
  const link = Object.assign(element("a", "id", sample.id), { href: address(sample), title: "Link to this sample" });
  meta.append(element("span", `outcome ${sample.outcome}`, OUTCOMES[sample.outcome]), element("bdi", "group", group(sample)), link);
  const question = element("p", "question", sample.question);
  question.dir = "auto";
  body.append(meta, question, texts(sample, marking));
  made.append(body);
  return made;
}
