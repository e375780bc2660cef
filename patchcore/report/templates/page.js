"use strict";

// The page's data, its state in the address, tables and galleries. The view depends only on the
// address, so that a link shows what its sender saw.
const data = JSON.parse(document.getElementById("data").textContent);
const runs = new Map(data.runs.map((run) => [run.name, run]));
const finished = data.runs.filter((run) => run.finished);

// Makes an element; texts are never read as markup.
function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(name, value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null) made.setAttribute(name, value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== ""));
  return made;
}

// Makes a table in a region of its own. Each row is a list of texts or elements, its header first.
function tableOf(name, heads, rows, kind = "") {
  const head = el("tr", {}, heads.map((text) => (text ? el("th", { scope: "col" }, text) : el("td"))));
  const body = rows.map((row) =>
    el("tr", {}, row.map((cell, i) => el(i ? "td" : "th", i ? {} : { scope: "row" }, cell))));
  return el("div", { class: `scroll ${kind}`, tabindex: 0, role: "region", "aria-label": name },
    el("table", { "aria-label": name }, el("thead", {}, head), el("tbody", {}, body)));
}

// ---- The address -------------------------------------------------------------------------------
let state = read(location.hash);

function read(hash) {
  const found = new URLSearchParams(hash.includes("=") ? hash.slice(1) : "");
  found.delete("view"); // a placeholder for an empty state
  return found;
}

function address(changes) {
  const next = new URLSearchParams(state);
  for (const [key, value] of Object.entries(changes)) {
    next.delete(key);
    for (const one of Array.isArray(value) ? value : [value]) if (one !== null) next.append(key, one);
  }
  return `#${next.toString() || "view=all"}`;
}

// Changes the address: {key: value, list of values or null}. With `back`, the browser's "back"
// undoes the change.
function go(changes, back = false) {
  const to = address(changes);
  state = read(to); // at once; the event "hashchange" comes later
  if (back) location.hash = to;
  else location.replace(to);
}

const metric = () => {
  const asked = state.get("metric");
  return asked in data.measures ? asked : data.metric;
};
const titleOf = (key) => data.measures[key]?.title ?? key;

// ---- Filters -----------------------------------------------------------------------------------
const NOTHING = "∅"; // in the address, if no value is ticked
const MANY = 12; // a numeric factor with more values is filtered by its range
let shown = new Set();

function passes(point) {
  return data.parts[point.part].factors.every(({ key }) => {
    const wanted = state.getAll(`f.${key}`);
    if (!wanted.length) return true;
    const [value, text] = point.settings[key];
    const ends = wanted[0].match(/^(.*)\.\.(.*)$/);
    if (!ends || value === null) return wanted.includes(text);
    return (ends[1] === "" || value >= Number(ends[1])) && (ends[2] === "" || value <= Number(ends[2]));
  });
}

function selectOf(label, options, value, change, attributes = {}) {
  const select = el("select", { change: () => change(select.value), ...attributes });
  for (const [key, text] of options) select.append(el("option", { value: key, selected: key === value }, text));
  return el("label", { class: "control" }, el("span", {}, label), select);
}

// The values of every factor, over all parts.
function factors() {
  const found = new Map();
  for (const part of data.parts) {
    for (const { key, numeric, values } of part.factors) {
      const known = found.get(key) ?? { key, numeric: true, values: new Set() };
      known.numeric &&= numeric;
      values.forEach((value) => known.values.add(value));
      found.set(key, known);
    }
  }
  return [...found.values()].filter((factor) => factor.values.size > 1);
}

function filterOf(factor) {
  const name = `f.${factor.key}`;
  const wanted = state.getAll(name);
  if (factor.numeric && factor.values.size > MANY) {
    const [low, high] = wanted[0]?.split("..") ?? ["", ""];
    const box = (text, value, i) => el("label", {}, `${text} `, el("input", {
      type: "number", step: "any", value,
      change: (event) => {
        const ends = (state.getAll(name)[0] ?? "..").split("..");
        ends[i] = event.target.value;
        go({ [name]: ends.join("") ? ends.join("..") : null });
      },
    }));
    return el("fieldset", {}, el("legend", {}, factor.key), box("from", low, 0), box("to", high, 1));
  }
  const all = [...factor.values];
  const boxes = all.map((value) => el("label", {}, el("input", {
    type: "checkbox", checked: !wanted.length || wanted.includes(value),
    change: (event) => {
      const before = state.getAll(name).length ? state.getAll(name) : all;
      const next = all.filter((one) => (one === value ? event.target.checked : before.includes(one)));
      go({ [name]: next.length === all.length ? null : next.length ? next : NOTHING });
    },
  }), ` ${value}`));
  return el("fieldset", {}, el("legend", {}, factor.key), boxes);
}

// The toolbar: metric, filters, columns, links and downloads.
function tools() {
  const place = document.getElementById("tools");
  if (data.points.length < 2) return;
  const focus = place.contains(document.activeElement) ? controls(place).indexOf(document.activeElement) : -1;
  const open = [...place.querySelectorAll("details")].map((details) => details.open);
  const active = [...state.keys()].some((key) => key.startsWith("f."));
  const hidden = hiddenColumns();
  const columns = [...document.querySelectorAll(".board thead th[data-key]")];
  const keys = [...new Map(columns.map((head) => [head.dataset.key, head.innerText.trim()]))];
  const bar = el("div", { class: "bar" },
    selectOf("Metric", Object.keys(data.measures).map((key) => [key, titleOf(key)]), metric(),
      (value) => go({ metric: value === data.metric ? null : value }), { id: "metric" }),
    el("p", { role: "status" }, `${shown.size} of ${data.points.length} points`),
    el("button", { type: "button", click: () => {
      const cleared = [...state.keys()].filter((key) => key.startsWith("f.") || key === "hide");
      go(Object.fromEntries(cleared.map((key) => [key, null])));
    }, disabled: !active && !hidden.size }, "Show all"),
    copier("Copy link", () => location.href),
    el("button", { type: "button", click: downloadTable }, "Download table"));
  const filters = el("details", { class: "filters", open: open[0] ?? active },
    el("summary", {}, "Filter points"), el("div", { class: "fields" }, factors().map(filterOf)));
  const chooser = el("details", { open: open[1] ?? false }, el("summary", {}, "Choose columns"),
    el("div", { class: "fields" }, el("fieldset", {}, el("legend", {}, "Leaderboard"),
      keys.map(([key, text]) => el("label", {}, el("input", {
        type: "checkbox", checked: !hidden.has(key),
        change: (event) => {
          const next = new Set(hiddenColumns());
          if (event.target.checked) next.delete(key); else next.add(key);
          go({ hide: [...next] });
        },
      }), ` ${text}`)))));
  place.className = "tools-of-page";
  place.replaceChildren(bar, filters, chooser);
  controls(place)[focus]?.focus();
}

function controls(place) {
  return [...place.querySelectorAll("select, input, button, summary")];
}

function copier(text, content) {
  const button = el("button", { type: "button", click: async () => {
    try {
      await navigator.clipboard.writeText(content());
      button.textContent = "Copied";
    } catch {
      prompt(text, content()); // some browsers refuse the clipboard to local files
    }
    setTimeout(() => { button.textContent = text; }, 1500);
  } }, text);
  return button;
}

function download(name, text, type = "text/csv") {
  const link = el("a", { href: URL.createObjectURL(new Blob([text], { type })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

// A CSV field; an apostrophe keeps spreadsheets from reading a formula.
function field(value) {
  const text = String(value);
  const safe = /^'*([\t\r\n]|\s*[=+\-@])/.test(text) && !Number.isFinite(Number(text)) ? `'${text}` : text;
  return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}

// Downloads the leaderboards as one table, with the rows, order and columns that are shown. Values
// are those of report.csv, not in the units of the page's titles, so columns are named by their keys.
function downloadTable() {
  const boards = [...document.querySelectorAll(".board")];
  const several = boards.length > 1;
  const shown = (row) => [...row.cells].filter((cell) => !cell.hidden && !cell.classList.contains("tool"));
  const headsOf = (board) => shown(board.tHead.rows[0]).map((head) => head.dataset.key ?? head.innerText.trim());
  const heads = [...new Set([...(several ? ["data"] : []), ...boards.flatMap(headsOf)])];
  const lines = boards.flatMap((board) => {
    const own = headsOf(board);
    return [...board.tBodies[0].rows].filter((row) => !row.hidden).map((row) => {
      const values = new Map(shown(row).map((cell, i) => [own[i], cell.dataset.v ?? cell.innerText.trim()]));
      if (several) values.set("data", data.parts[data.points[row.dataset.point].part].name);
      return heads.map((head) => values.get(head) ?? "");
    });
  });
  download("leaderboard.csv", [heads, ...lines].map((line) => `${line.map(field).join(",")}\n`).join(""));
}

// ---- Tables ------------------------------------------------------------------------------------
const hiddenColumns = () => new Set(state.getAll("hide"));

// Undefined cells (data-v="") stay last in both orders.
function sortTable(table, head, order) {
  const heads = [...table.tHead.rows[0].cells];
  const column = heads.indexOf(head);
  const sign = order === "ascending" ? 1 : -1;
  const rows = [...table.tBodies[0].rows].map((row) => [row.cells[column].dataset.v, row]);
  const numeric = rows.every(([value]) => value === "" || Number.isFinite(Number(value)));
  rows.sort(([a], [b]) => {
    if (a === "" || b === "") return (a === "") - (b === "");
    return sign * (numeric ? a - b : a.localeCompare(b, undefined, { numeric: true }));
  });
  heads.forEach((other) => other.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", order);
  table.tBodies[0].append(...rows.map(([, row]) => row));
}

document.addEventListener("click", (event) => {
  const head = event.target.closest("table.sortable thead button")?.closest("th");
  if (!head) return;
  const before = head.getAttribute("aria-sort");
  const order = before ? (before === "ascending" ? "descending" : "ascending") : head.dataset.first;
  sortTable(head.closest("table"), head, order);
});

// The run that a click on a row opens; in a category's column, the run of that category.
function runOf(row, cell) {
  if (row.dataset.run) return data.runs[row.dataset.run];
  const own = data.points[row.dataset.point].runs.map((i) => data.runs[i]);
  const head = cell && row.closest("table").tHead.rows[0].cells[cell.cellIndex]?.innerText.trim();
  return own.find((run) => run.category && run.category === head)
    ?? own.find((run) => run.finished) ?? own[0];
}

function linkRows() {
  for (const row of document.querySelectorAll("tr[data-point], tr[data-run]")) {
    const run = runOf(row);
    const link = el("a", { href: `#${new URLSearchParams({ run: run.name })}` });
    link.append(...row.cells[0].childNodes);
    row.cells[0].append(link);
  }
}

document.addEventListener("click", (event) => {
  const row = event.target.closest("tr[data-point], tr[data-run]");
  if (!row || event.target.closest("button") || event.ctrlKey || event.metaKey) return;
  if (!event.target.closest("a") && String(getSelection())) return; // text is being selected
  event.preventDefault();
  go({ run: runOf(row, event.target.closest("td, th")).name }, true);
});

document.querySelector("nav").addEventListener("click", (event) => {
  const id = event.target.closest("a")?.getAttribute("href").slice(1);
  if (!id) return;
  event.preventDefault();
  go({ at: id });
  document.getElementById(id).scrollIntoView();
});

let sortedBy = null;

function tables() {
  for (const row of document.querySelectorAll("tr[data-point]")) row.hidden = !shown.has(Number(row.dataset.point));
  for (const row of document.querySelectorAll("tr[data-run]")) {
    const { point } = data.runs[row.dataset.run];
    row.hidden = point !== null && !shown.has(point);
  }
  const hidden = hiddenColumns();
  for (const table of document.querySelectorAll(".board")) {
    [...table.tHead.rows[0].cells].forEach((head, i) => {
      const hide = hidden.has(head.dataset.key);
      if (head.hidden !== hide) for (const row of table.rows) row.cells[i].hidden = hide;
      if (head.dataset.key === metric() && sortedBy !== metric() && (sortedBy || metric() !== data.metric)) {
        sortTable(table, head, head.dataset.first);
      }
    });
  }
  sortedBy = metric();
}

// ---- Galleries: thumbnails hold the pictures, and the viewer enlarges one of them -----------------
const thumbs = [...document.querySelectorAll(".thumb")];
const viewer = document.getElementById("viewer");
let large = 0;

function show(index) {
  large = (index + thumbs.length) % thumbs.length;
  const thumb = thumbs[large];
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
  else if (button) show(large + Number(button.dataset.step));
});
viewer.addEventListener("keydown", (event) => {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (step && !event.target.matches(".frame")) { event.preventDefault(); show(large + step); }
});

// ---- All together ------------------------------------------------------------------------------
function apply() {
  state = read(location.hash);
  shown = new Set(data.points.flatMap((point, i) => (passes(point) ? [i] : [])));
  tables();
  tools();
  showRun();
  return drawCharts();
}

function start() {
  linkRows();
  addEventListener("hashchange", apply);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  addEventListener("beforeprint", () => document.querySelectorAll("main details").forEach((fold) => {
    fold.dataset.before = fold.open;
    if (!fold.querySelector(".fields")) fold.open = true;
  }));
  addEventListener("afterprint", () => document.querySelectorAll("main details").forEach((fold) => {
    fold.open = fold.dataset.before === "true";
  }));
  let width = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth === width) return; // a phone has shown or hidden its address bar
    width = innerWidth;
    clearTimeout(start.timer);
    start.timer = setTimeout(redraw, 200);
  });
  const drawn = apply();
  if (state.get("at")) drawn.then(() => document.getElementById(state.get("at"))?.scrollIntoView());
  drawn.then(() => { document.documentElement.dataset.drawn = Math.round(performance.now()); });
}
