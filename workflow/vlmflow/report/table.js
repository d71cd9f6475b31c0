"use strict";
// A click on a heading sorts by it, a second click the other way round; rows without a value stay last.
const body = document.querySelector("tbody");
const headings = [...document.querySelectorAll("thead th")];

const compare = (a, b) =>
  typeof a === "number" && typeof b === "number"
    ? a - b
    : String(a).localeCompare(String(b), undefined, { numeric: true });

headings.forEach((heading, column) => {
  heading.querySelector("button").addEventListener("click", () => {
    const sign = heading.getAttribute("aria-sort") === "descending" ? 1 : -1;
    const value = (row) => JSON.parse(row.children[column].dataset.order);
    const rows = [...body.rows].sort((first, second) => {
      const [a, b] = [value(first), value(second)];
      return a === null || b === null ? (a === null) - (b === null) : sign * compare(a, b);
    });
    headings.forEach((other) => other.removeAttribute("aria-sort"));
    heading.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
    body.append(...rows);
  });
});
