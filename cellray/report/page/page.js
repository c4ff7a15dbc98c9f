"use strict";

// Tables: a column's title sorts by it, and once more the other way; what has no value stays last.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") !== "ascending";
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const value = row => row.cells[column].dataset.sort;
    const rows = [...body.rows].sort((a, b) => {
      const x = value(a), y = value(b);
      if (x === "" || y === "") return (x === "") - (y === "");
      const order = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
      return up ? order : -order;
    });
    body.append(...rows);
  }));
}

// Images: enlarged in a dialog; left and right step along the row, up and down to the same place of another row.
const dialog = document.querySelector("dialog");
const zooms = [...document.querySelectorAll("button.zoom")];
let shown = null;

function show(button) {
  const from = button.querySelector("img"), to = dialog.querySelector("img");
  shown = button;
  for (const name of ["src", "alt", "width", "height"]) to.setAttribute(name, from.getAttribute(name));
  dialog.querySelector("p").textContent = button.dataset.caption;
  // not `disabled`: a disabled button that has the focus would swallow the arrow keys
  for (const key of dialog.querySelectorAll("[data-step]")) key.ariaDisabled = !beside(+key.dataset.step);
  for (const key of dialog.querySelectorAll("[data-jump]")) key.ariaDisabled = !below(+key.dataset.jump);
  if (!dialog.open) dialog.showModal();
}

function rowOf(button) {
  const { grid, row } = button.dataset;
  return zooms.filter(other => other.dataset.grid === grid && other.dataset.row === row);
}

function beside(step) {
  const row = rowOf(shown);
  return row[row.indexOf(shown) + step];
}

function below(step) {
  const grid = zooms.filter(other => other.dataset.grid === shown.dataset.grid);
  const rows = [...new Set(grid.map(other => other.dataset.row))];
  const next = grid.find(other => other.dataset.row === rows[rows.indexOf(shown.dataset.row) + step]);
  return next && rowOf(next)[rowOf(shown).indexOf(shown)];
}

for (const button of zooms) button.addEventListener("click", () => show(button));
dialog.addEventListener("click", event => {
  const { step, jump, close } = event.target.dataset;
  const next = step ? beside(+step) : jump ? below(+jump) : null;
  if (next) show(next);
  else if (event.target === dialog || close !== undefined) dialog.close();
});
dialog.addEventListener("keydown", event => {
  const next = { ArrowLeft: () => beside(-1), ArrowRight: () => beside(1), ArrowUp: () => below(-1), ArrowDown: () => below(1) };
  if (!(event.key in next)) return;
  event.preventDefault();
  const found = next[event.key]();
  if (found) show(found);
});
dialog.addEventListener("close", () => {
  for (let box = shown.closest("details"); box; box = box.parentElement.closest("details")) box.open = true;
  shown.focus();
});

// A link into a folded part opens it.
function unfold() {
  const target = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  for (let box = target && target.closest("details"); box; box = box.parentElement.closest("details")) box.open = true;
}
addEventListener("hashchange", unfold);
unfold();

// Contents: the part being read is marked.
const links = new Map([...document.querySelectorAll("nav > ul > li > a")].map(a => [a.hash.slice(1), a]));
const seen = new IntersectionObserver(entries => {
  for (const entry of entries.filter(e => e.isIntersecting)) {
    for (const link of links.values()) link.removeAttribute("aria-current");
    links.get(entry.target.id).setAttribute("aria-current", "true");
  }
}, { rootMargin: "-15% 0px -80% 0px" });
for (const id of links.keys()) seen.observe(document.getElementById(id));
