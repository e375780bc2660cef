"use strict";

// What a reader does on the page of tests/test_report_page.py, and what is to be seen then.
const text = (node) => node.innerText.trim();
const all = (selector, within = document) => [...within.querySelectorAll(selector)];
const settled = async () => {  // charts, runs and the address follow one another
  for (let i = 0; i < 3; i += 1) {
    await new Promise((done) => setTimeout(done, 20));
    await drawing; await running;
  }
};
const boxes = (selector) => all(selector).map((svg) => {
  const { width, height } = svg.getBoundingClientRect();
  return [width, height, all(".mark-symbol path, .mark-rect path, .mark-line path", svg).length];
});
async function probe() {
  const table = document.querySelector("#leaderboard table");
  const heads = [...table.tHead.rows[0].cells];
  const column = (name) => heads.findIndex((head) => head.innerText.includes(name));
  const rows = () => [...table.tBodies[0].rows].filter((row) => !row.hidden);
  const cells = (name) => rows().map((row) => text(row.cells[column(name)]));
  const click = (name) => heads[column(name)].querySelector("button").click();
  const seen = { heads: heads.map(text), rank: cells("#"), drawn: document.documentElement.dataset.drawn };
  const sorted = () => heads.filter((head) => head.ariaSort);
  seen.sorted = sorted().map((head) => [text(head), head.ariaSort]);
  for (const name of ["patch", "pixel", "seconds", "backbone"]) {
    seen[name] = [];
    for (const _ of [1, 2]) {
      click(name);
      seen[name].push([heads[column(name)].ariaSort, cells(name)]);
    }
  }
  seen.sortedColumns = sorted().length;
  all("[data-gallery]")[1].click();
  document.querySelector("#viewer [data-step='1']").click();
  const picture = document.querySelector("#viewer img");
  await picture.decode();
  seen.viewer = [viewer.open, text(document.getElementById("viewer-name"))];
  document.querySelector("#viewer [data-close]").click();
  seen.closed = !viewer.open;
  seen.images = [...document.images].map((image) => image.naturalWidth);
  seen.charts = boxes("main .chart svg.marks");
  seen.tables = all("main section table").map((one) => one.rows.length);

  // Filters, metric, columns.
  const tick = (name, value) => {
    const field = all("#tools fieldset").find((one) => text(one.querySelector("legend")) === name);
    all("label", field).find((one) => text(one) === value).querySelector("input").click();
  };
  document.querySelector("#tools details").open = true;
  tick("patch.size", "1");
  await settled();
  tick("backbone.name", "resnet18");
  await settled();
  seen.filtered = [cells("patch"), cells("backbone"), location.hash, text(document.querySelector("[role=status]"))];
  seen.filteredCharts = boxes("main .chart svg.marks");
  const choose = (select, value) => { select.value = value; select.dispatchEvent(new Event("change")); };
  choose(document.getElementById("metric"), "aupro");
  await settled();
  seen.metric = [sorted().map(text), location.hash, charts.map((chart) => chart.place.querySelector(".canvas")?.ariaLabel ?? text(chart.place))];
  all("#tools details")[1].open = true;
  tick("Leaderboard", "missed");
  await settled();
  seen.hidden = [getComputedStyle(heads[column("missed")]).display, location.hash];
  [...all("#tools .bar button")].find((button) => text(button) === "Show all").click();
  choose(document.getElementById("metric"), "image_auroc");
  await settled();
  seen.reset = [cells("#").length, location.hash];

  // A chart by keys: from point to point, nearer, and to the run.
  const canvas = document.querySelector("#pareto .canvas");
  const press = (key) => document.querySelector("#pareto .canvas").dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
  const labels = () => all("#pareto .role-axis-label text").map((one) => one.textContent).join();
  press("ArrowRight");
  seen.readout = text(document.querySelector("#pareto .readout"));
  const before = labels();
  press("+");
  await settled();
  seen.zoomed = [before, labels()];
  press("0");
  await settled();
  seen.unzoomed = labels();
  press("ArrowRight");
  press("Enter");
  await settled();
  seen.byKeys = [runview.open, text(document.getElementById("runview-name"))];
  document.querySelector("#runview [data-close]").click();
  await settled();
  seen.runClosed = [runview.open, location.hash];

  // A point of a chart, by the pointer.
  const marks = all("#pareto .mark-symbol path");
  marks[0].dispatchEvent(new PointerEvent("click", { bubbles: true, pointerType: "mouse" }));
  await settled();
  seen.byClick = [runview.open, state.get("run")];
  const back = new Promise((done) => addEventListener("hashchange", done, { once: true }));
  history.back();
  await back;
  await settled();
  seen.back = runview.open;

  // A run that is opened before the browser has told that the one before was closed.
  const told = () => new Promise((done) => runview.addEventListener("close", done, { once: true }));
  go({ run: finished[0].name }, true);
  await settled();
  let closing = told();
  document.querySelector("#runview [data-close]").click();
  go({ run: finished[1].name }, true);
  await closing;
  await settled();
  seen.reopened = [runview.open, state.get("run") === finished[1].name];
  closing = told();
  runview.close(); // as Escape does: the address follows
  if (seen.reopened[0]) await closing;
  await settled();
  seen.escaped = [runview.open, state.get("run")];

  // A row, and what the run's page tells.
  [...table.tBodies[0].rows].find((row) => text(row.cells[0]) === "3").cells[4].click();
  await settled();
  seen.run = {
    name: text(document.getElementById("runview-name")), hash: location.hash,
    headings: all("#runview h3").map(text), code: text(document.querySelector("#runview code")),
    charts: boxes("#runview svg.marks"),
    tables: Object.fromEntries(all("#runview .body [role=region]").filter((one) => one.querySelector("table"))
      .map((one) => [one.ariaLabel, all("tr", one).map((row) => [...row.cells].map((cell) => cell.textContent))])),
    images: all("#runview img").length,
  };
  document.querySelector("#runview [data-step='1']").click();
  await settled();
  seen.next = text(document.getElementById("runview-name"));
  choose(all("#runview select").find((one) => text(one.closest("label")).startsWith("Compare")), finished[5].name);
  await settled();
  seen.pair = {
    hash: location.hash, open: runview.open, heading: all("#pair h3").map(text),
    rows: all("#pair [aria-label='Images by disagreement'] tbody tr").map((row) => [...row.cells].map((cell) => cell.textContent)),
    charts: boxes("#pair svg.marks"),
  };
  const run = runs.get("0");
  seen.statistics = {
    curves: curvesOf(imagesOf(run)), images: imagesOf(run), counts: judged(imagesOf(run), 0.5),
    rows: disagreements(runs.get("0"), runs.get("1")).map(({ image, unlike, apart }) => [image.path, unlike, apart]),
  };
  all("details").forEach((details) => { details.open = true; });
  seen.overflow = document.documentElement.scrollWidth - innerWidth;
  seen.width = innerWidth;
  return seen;
}
addEventListener("load", async () => {
  await drawing;
  const found = JSON.stringify(await probe().catch((error) => ({ error: String(error.stack) })));
  console.log(`probed: ${found}`);
});
