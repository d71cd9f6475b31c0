// Which words of two texts differ. Scripts without spaces are compared character by character.
const MOST_EDITS = 300; // beyond them everything between the equal ends is marked: no text takes more than a moment
const UNSPACED = "[\\p{sc=Han}\\p{sc=Hira}\\p{sc=Kana}\\p{sc=Thai}\\p{sc=Laoo}\\p{sc=Khmr}\\p{sc=Mymr}]\\p{M}*";
const TOKEN = new RegExp(`${UNSPACED}|(?:(?!${UNSPACED})[\\p{L}\\p{N}\\p{M}])+|\\s+|.`, "gsu");

// The parts of `text` as [part, whether it differs from `other`].
function differences(text, other) {
  const parts = text.match(TOKEN) ?? [];
  const words = parts.flatMap((part, index) => (part.trim() ? [index] : []));
  const kept = common(words.map((index) => parts[index]), (other.match(TOKEN) ?? []).filter((part) => part.trim()));
  const differs = parts.map(() => false);
  words.forEach((index, number) => { differs[index] = !kept.has(number); });
  for (let index = 1; index + 1 < parts.length; index++) {
    if (!parts[index].trim()) differs[index] = differs[index - 1] && differs[index + 1]; // a space goes with its neighbours
  }
  const runs = [];
  parts.forEach((part, index) => {
    if (runs.length && runs.at(-1)[1] === differs[index]) runs.at(-1)[0] += part;
    else runs.push([part, differs[index]]);
  });
  return runs;
}

// Positions in `a` of a longest common subsequence with `b` (Myers 1986, "An O(ND) difference algorithm").
function common(a, b) {
  let start = 0;
  while (start < a.length && start < b.length && a[start] === b[start]) start++;
  let end = 0;
  while (end < a.length - start && end < b.length - start && a.at(-1 - end) === b.at(-1 - end)) end++;
  const kept = new Set([...a.keys()].filter((index) => index < start || index >= a.length - end));
  const middle = commonOf(a.slice(start, a.length - end), b.slice(start, b.length - end));
  for (const index of middle) kept.add(start + index);
  return kept;
}

function commonOf(a, b) {
  const centre = MOST_EDITS + 1;
  const reach = new Int32Array(2 * centre + 1); // furthest x on each diagonal k = x - y
  const trace = [];
  const fromAbove = (row, k, edits) => k === -edits || (k !== edits && row[centre + k - 1] < row[centre + k + 1]);
  for (let edits = 0; edits <= MOST_EDITS; edits++) {
    trace.push(reach.slice());
    for (let k = -edits; k <= edits; k += 2) {
      let x = fromAbove(reach, k, edits) ? reach[centre + k + 1] : reach[centre + k - 1] + 1;
      while (x < a.length && x - k < b.length && a[x] === b[x - k]) x++;
      reach[centre + k] = x;
      if (x >= a.length && x - k >= b.length) return walkBack(trace, a.length, b.length, centre, fromAbove);
    }
  }
  return [];
}

function walkBack(trace, x, y, centre, fromAbove) {
  const kept = [];
  for (let edits = trace.length - 1; edits >= 0; edits--) {
    const k = x - y;
    const before = fromAbove(trace[edits], k, edits) ? k + 1 : k - 1;
    const left = trace[edits][centre + before];
    while (x > left && y > left - before) {
      kept.push(--x);
      y--;
    }
    x = left;
    y = left - before;
  }
  return kept;
}
