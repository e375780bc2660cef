"use strict";

// Sorting: a click on a column's button; undefined cells (data-v="") stay last both ways.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  table.tHead.addEventListener("click", (event) => {
    const head = event.target.closest("button")?.closest("th");
    if (!head) return;
    const column = heads.indexOf(head);
    const before = head.getAttribute("aria-sort");
    const order = before ? (before === "ascending" ? "descending" : "ascending") : head.dataset.first;
    const sign = order === "ascending" ? 1 : -1;
    const rows = [...body.rows].map((row) => [row.cells[column].dataset.v, row]);
    const numeric = rows.every(([value]) => value === "" || Number.isFinite(Number(value)));
    rows.sort(([a], [b]) => {
      if (a === "" || b === "") return (a === "") - (b === "");
      return sign * (numeric ? a - b : a.localeCompare(b, undefined, { numeric: true }));
    });
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", order);
    body.append(...rows.map(([, row]) => row));
  });
}

// Galleries: the thumbnails hold the pictures; the viewer shows one of them large.
const thumbs = [...document.querySelectorAll(".thumb")];
const viewer = document.getElementById("viewer");
let shown = 0;

function show(index) {
  shown = (index + thumbs.length) % thumbs.length;
  const thumb = thumbs[shown];
  document.getElementById("viewer-name").textContent = thumb.querySelector("strong").textContent;
  document.getElementById("viewer-note").textContent = thumb.querySelector("span").textContent;
  viewer.querySelector(".frame").replaceChildren(thumb.querySelector("img").cloneNode());
  if (!viewer.open) viewer.showModal();
}

document.addEventListener("click", (event) => {
  const opener = event.target.closest("[data-gallery]");
  if (opener) show(thumbs.findIndex((thumb) => thumb.id === opener.dataset.gallery));
});
viewer.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (event.target === viewer || button?.hasAttribute("data-close")) viewer.close();
  else if (button) show(shown + Number(button.dataset.step));
});
viewer.addEventListener("keydown", (event) => {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (step && !event.target.matches(".frame")) { event.preventDefault(); show(shown + step); }
});
