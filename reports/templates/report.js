"use strict";
// Filters and sorts the tables marked data-cases. Everything can be read without it.
for (const box of document.querySelectorAll("[data-controls]")) {
  const table = document.getElementById(box.dataset.controls);
  const body = table.tBodies[0];
  const text = box.querySelector("input");
  const outcome = box.querySelector("select");
  const said = box.querySelector("output");
  const apply = () => {
    const words = text.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of body.rows) {
      const line = row.textContent.toLowerCase();
      const keep = words.every((word) => line.includes(word)) && (!outcome.value || row.dataset.o === outcome.value);
      row.hidden = !keep;
      shown += keep;
    }
    said.textContent = shown + " of " + body.rows.length + " rows";
  };
  text.addEventListener("input", apply);
  outcome.addEventListener("change", apply);
  [...table.tHead.rows[0].cells].forEach((cell, at) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = cell.textContent;
    cell.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = cell.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      cell.setAttribute("aria-sort", down > 0 ? "ascending" : "descending");
      const key = (row) => row.cells[at].textContent.replaceAll(",", "");
      const order = (a, b) => (a === "" || b === "" ? (a === "") - (b === "") : isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b);
      body.append(...[...body.rows].sort((a, b) => down * order(key(a), key(b))));
    });
  });
  box.hidden = false;
  apply();
}
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((fold) => (fold.open = true)));
