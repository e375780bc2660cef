
// ---- A run: settings, command, curves, errors, pictures -----------------------------------------
const runview = document.getElementById("runview");
const inline = document.querySelector("[data-panel='run']"); // in a report on one run
const pair = document.querySelector("[data-panel='pair']");

const nameOf = (run) => [
  run.point === null ? run.name : `${data.points[run.point].rank ? `#${data.points[run.point].rank} ` : ""}${data.points[run.point].label}`,
  run.category, run.seed,
].filter(Boolean).join(" · ");

// The thresholds of a run, {key: value}, and the one that its verdicts use.
function thresholdOf(run) {
  const asked = state.get("by");
  return asked in run.thresholds ? asked : Object.keys(run.thresholds)[0];
}

function thresholdSelect(run) {
  const options = Object.keys(run.thresholds).map((key) => [key, `${data.thresholds[key]}, ${significant(run.thresholds[key])}`]);
  return selectOf("Judged by", options, thresholdOf(run), (value) => go({ by: value }));
}

function linked(run, text) {
  if (!run.link) return text;
  return el("a", { href: run.link }, text);
}

function runContent(run) {
  const images = imagesOf(run);
  const own = run.point === null ? [] : data.points[run.point].runs.map((i) => data.runs[i]);
  const parts = [];
  const bar = [];
  if (own.length > 1) {
    bar.push(selectOf("Run", own.map((one) => [one.name, [one.category, one.seed, one.finished ? "" : "not finished"].filter(Boolean).join(" · ") || one.name]),
      run.name, (value) => go({ run: value })));
  }
  if (pair && run.finished) {
    const others = finished.filter((other) => other !== run);
    bar.push(selectOf("Compare with", [["", "choose a run"], ...others.map((other) => [other.name, nameOf(other)])], "", (value) => {
      runview.close();
      go({ run: null, a: run.name, b: value, at: "pair" }, true);
      document.getElementById("pair").scrollIntoView();
    }));
  }
  parts.push(el("div", { class: "bar" }, bar),
    el("p", { class: "note" }, run.status, " · ", el("span", { class: "path" }, linked(run, run.name === "." ? "its folder" : run.name))));
  const numbers = [
    ...Object.values(run.metrics).map(([, text, title]) => [title, text]),
    ...Object.entries(run.undefined).map(([title, why]) => [title, `undefined: ${why}`]),
    ...Object.entries(run.seconds).map(([stage, text]) => [`seconds, ${stage}`, text]),
  ];
  const columns = [el("div", {}, el("h3", {}, "Numbers"),
    numbers.length ? tableOf("Numbers of the run", ["metric", "value"], numbers) : el("p", {}, "None."))];
  const settings = Object.entries(run.settings);
  const constant = Object.entries(data.constant);
  columns.push(el("div", {},
    el("h3", {}, "Command to repeat it"),
    run.command ? el("p", { class: "command" }, el("code", {}, run.command), " ", copier("Copy command", () => run.command))
      : el("p", { class: "note" }, "The run’s folder does not record it."),
    settings.length ? [el("h3", {}, "Settings that differ between runs"), tableOf("Settings that differ", ["setting", "value"], settings)] : [],
    el("details", {}, el("summary", {}, `${constant.length} settings that all runs share`),
      tableOf("Settings that all runs share", ["setting", "value"], constant))));
  parts.push(el("div", { class: "columns" }, columns));
  const drawings = [];
  if (images && images.length) parts.push(...scoresContent(run, images, drawings));
  else if (run.finished) parts.push(el("p", { class: "note" }, "The scores are not in this page: the run’s folder has none, or they would make the page too large."));
  const thumb = run.gallery && document.getElementById(run.gallery);
  if (thumb) {
    const image = thumb.querySelector("img").cloneNode();
    parts.push(el("h3", {}, "Gallery"), el("p", { class: "note" }, "The nominal images with the highest scores, and the anomalous images with the lowest and the highest scores, with their maps."),
      el("div", { class: "frame", tabindex: 0, role: "region", "aria-label": "Gallery of the run" }, image));
  }
  return { parts, drawings };
}

function scoresContent(run, images, drawings) {
  const parts = [];
  const key = thresholdOf(run);
  const threshold = run.thresholds[key];
  const { roc, pr } = curvesOf(images);
  const marks = Object.entries(run.thresholds).map(([name, value]) => ({ name: data.thresholds[name], value, ...judged(images, value) }));
  const place = (title) => el("figure", {}, el("figcaption", {}, title), el("div", { class: "canvas" }));
  const [first, second, third] = [place("ROC"), place("Precision–recall"), place("Scores")];
  const colours = { scale: { domain: marks.map((mark) => mark.name), range: [css("--s3"), css("--s4")] }, type: "nominal", title: null };
  const square = (x, y, titles, curve, line, hint) => ({
    width: 250, height: 250,
    layer: [
      { data: { values: thinned(curve) }, mark: { type: "line", color: css("--s1"), ...line },
        encoding: { x: { field: x, type: "quantitative", title: titles[0], scale: { domain: [0, 1] } },
                    y: { field: y, type: "quantitative", title: titles[1], scale: { domain: [0, 1] } },
                    order: { field: "order" } },
        transform: [{ window: [{ op: "row_number", as: "order" }] }] },
      { data: { values: marks.filter((mark) => mark[x] !== null && mark[y] !== null) },
        mark: { type: "point", filled: true, size: 110, opacity: 1 },
        encoding: { x: { field: x, type: "quantitative" }, y: { field: y, type: "quantitative" },
                    color: { field: "name", ...colours, legend: { columns: 1 } },
                    shape: { field: "name", ...colours, scale: { domain: colours.scale.domain } }, tooltip: hint } },
    ],
  });
  const told = [{ field: "name", title: "operating point" }, { field: "value", title: "threshold", format: ".4~g" },
               { field: "tpr", title: "recall", format: ".3f" }, { field: "fpr", title: "false-positive rate", format: ".3f" },
               { field: "precision", title: "precision", format: ".3f" }];
  for (const mark of marks) { mark.recall = mark.tpr; }
  if (roc.length) drawings.push([first, square("fpr", "tpr", ["false-positive rate", "true-positive rate"], roc, {}, told)]);
  if (pr.length) drawings.push([second, square("recall", "precision", ["recall", "precision"], pr, { interpolate: "step-before" }, told)]);
  drawings.push([third, {
    width: 330, height: 250,
    layer: [
      { data: { values: histogramOf(images) }, mark: { type: "rect", opacity: 0.6 },
        encoding: { x: { field: "from", type: "quantitative", title: "image anomaly score", scale: { zero: false } }, x2: { field: "to" },
                    y: { field: "zero", type: "quantitative", title: "images", axis: { tickMinStep: 1, format: "d" } }, y2: { field: "count" },
                    color: { field: "kind", type: "nominal", title: null, sort: { field: "label" },
                             scale: { range: [css("--s0"), css("--s1")] }, legend: { orient: "top" } },
                    tooltip: [{ field: "kind" }, { field: "count", title: "images" }, { field: "from", format: ".4~g" }, { field: "to", format: ".4~g" }] } },
      { data: { values: marks }, mark: { type: "rule", strokeWidth: 2, strokeDash: [5, 3] },
        encoding: { x: { field: "value", type: "quantitative" }, stroke: { field: "name", ...colours, legend: { columns: 1 } },
                    tooltip: told.slice(0, 2) } },
    ],
    resolve: { scale: { stroke: "independent" } },
  }]);
  parts.push(el("h3", {}, "Scores of the test images"),
    el("div", { class: "figures" }, [roc.length ? first : "", pr.length ? second : "", third]));
  const save = el("button", { type: "button", click: () => download(`${run.name.replaceAll(/[^\w.-]+/g, "_")}_scores.csv`,
    ["path,label,defect_type,score", ...images.map((image) => [image.path, image.label, image.kind, image.score].map(field).join(","))].join("\n") + "\n") },
  "Download scores");
  if (key === undefined) {
    parts.push(el("p", { class: "note" }, "The run has no threshold, so no image has a verdict."), save);
    return parts;
  }
  const { tp, fn, fp, tn } = judged(images, threshold);
  const wrong = images.filter((image) => verdictOf(image, threshold) !== "correct")
    .sort((a, b) => Math.abs(b.score - threshold) - Math.abs(a.score - threshold));
  const kinds = Map.groupBy(images.filter((image) => image.label), (image) => image.kind);
  const recalls = [...kinds].sort(([a], [b]) => (a < b ? -1 : 1)).map(([kind, list]) => {
    const share = list.filter((image) => image.score >= threshold).length / list.length;
    return [kind, String(list.length), percent(share)];
  });
  parts.push(el("div", { class: "bar" }, thresholdSelect(run), save),
    el("div", { class: "columns" },
      el("div", {}, el("h3", {}, "Verdicts"),
        tableOf("Verdicts", ["", "called nominal", "called anomalous"], [["nominal", String(tn), String(fp)], ["anomalous", String(fn), String(tp)]])),
      recalls.length ? el("div", {}, el("h3", {}, "Recall by type of defect"),
        tableOf("Recall by type of defect", ["type", "images", "recall"], recalls)) : ""),
    el("h3", {}, `${wrong.length} images called wrong`));
  const most = 60;
  if (wrong.length) {
    parts.push(el("p", { class: "note" }, `Sorted by distance from the threshold, the farthest first${wrong.length > most ? `; ${wrong.length - most} more are in the downloaded scores` : ""}.`),
      tableOf("Images called wrong", ["image", "type", "score", "verdict"], wrong.slice(0, most).map((image) =>
        [el("span", { class: "path" }, image.path), image.kind, significant(image.score), verdictOf(image, threshold)]), "long"));
  }
  const pictured = images.filter((image) => run.pictures[image.i] !== undefined);
  if (pictured.length) {
    pictured.sort((a, b) => wrong.includes(b) - wrong.includes(a) || Math.abs(a.score - threshold) - Math.abs(b.score - threshold));
    parts.push(el("details", { open: true }, el("summary", {}, `${pictured.length} pictures`),
      el("div", { class: "pictures" }, pictured.map((image) => pictureOf(run, image, verdictOf(image, threshold))))));
  }
  return parts;
}

function pictureOf(run, image, verdict) {
  const source = data.pictures[run.pictures[image.i]];
  return el("figure", {}, el("img", { src: source, alt: `${image.path}: image, map and outlines`, loading: "lazy" }),
    el("figcaption", {}, el("span", { class: "path" }, image.path), el("small", {}, ` ${significant(image.score)} ${verdict}`)));
}

// Charts have to be on the page before they are drawn, because their place sets their size.
async function drawAll(drawings) {
  for (const [figure, spec] of drawings) {
    await embed(figure.querySelector(".canvas"), spec, figure.querySelector("figcaption").textContent);
  }
}

let opened = null;
let running = Promise.resolve();

function showRun(anew = false) {
  const run = runs.get(state.get("run")) ?? null;
  const signature = JSON.stringify([run?.name, state.get("by")]);
  const same = signature === opened && !anew;
  opened = signature;
  if (inline) {
    if (!same) fill(inline, finished[0]);
  } else if (!run) {
    shut();
  } else if (!same) {
    document.getElementById("runview-name").textContent = nameOf(run);
    fill(runview.querySelector(".body"), run);
    if (!runview.open) runview.showModal();
    byPage = false;
    runview.append(tip);
  }
  showPair(anew);
}

function fill(place, run) {
  const folds = [...place.querySelectorAll("details")].map((fold) => fold.open);
  const { parts, drawings } = runContent(run);
  place.replaceChildren(...parts);
  if (folds.length) place.querySelectorAll("details").forEach((fold, i) => { fold.open = folds[i] ?? fold.open; });
  running = running.then(() => drawAll(drawings));
}

let byPage = true; // whether the page closed the dialog, and not the browser after Escape

function shut() {
  byPage = true;
  if (runview.open) runview.close();
  document.body.append(tip);
}

function closeRun() {
  shut();
  if (state.get("run")) go({ run: null });
}

// The event comes one frame after the closing; another run may have been opened by then.
runview.addEventListener("close", () => { if (!byPage && !runview.open) closeRun(); });
runview.addEventListener("click", (event) => {
  const button = event.target.closest("header button");
  if (event.target === runview || button?.hasAttribute("data-close")) closeRun();
  else if (button) stepRun(Number(button.dataset.step));
});
runview.addEventListener("keydown", (event) => {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (step && !event.target.closest(".body select, .scroll, .frame")) { event.preventDefault(); stepRun(step); }
});

// Opens the next point that is shown, at the run of the same category and seed, if there is one.
function stepRun(step) {
  const run = runs.get(state.get("run"));
  const order = [...shown];
  const next = points[order[(order.indexOf(run.point) + step + order.length) % order.length]];
  const own = next.runs.map((i) => data.runs[i]);
  const alike = own.find((one) => one.category === run.category && one.seed === run.seed);
  go({ run: (alike ?? own[0]).name });
}

// ---- Two runs side by side ----------------------------------------------------------------------
let compared = "";

function showPair(anew) {
  if (!pair) return;
  const scored = finished.filter((run) => run.scores);
  const ranked = [...(scored.length > 1 ? scored : finished)].sort((a, b) => (a.point ?? 1e9) - (b.point ?? 1e9));
  const known = (key, usual) => (runs.get(state.get(key))?.finished ? runs.get(state.get(key)) : usual);
  const a = known("a", ranked.find((run) => run.name !== state.get("b")));
  const alike = ranked.find((run) => run !== a && run.scores?.set === a.scores?.set && run.point !== a.point);
  const b = known("b", alike ?? ranked.find((run) => run !== a));
  const signature = JSON.stringify([a.name, b.name, state.get("by")]);
  if (signature === compared && !anew) return;
  compared = signature;
  const options = finished.map((run) => [run.name, nameOf(run)]);
  const focus = pair.contains(document.activeElement) ? controls(pair).indexOf(document.activeElement) : -1;
  const { parts, drawings } = pairContent(a, b);
  pair.replaceChildren(el("div", { class: "bar" },
    selectOf("A", options, a.name, (value) => go({ a: value })),
    selectOf("B", options, b.name, (value) => go({ b: value })),
    el("button", { type: "button", click: () => go({ a: b.name, b: a.name }) }, "Swap")), ...parts);
  controls(pair)[focus]?.focus();
  running = running.then(() => drawAll(drawings));
}

// Images of both runs: those with different verdicts first, then by the difference of their ranks.
function disagreements(a, b) {
  const [left, right] = [imagesOf(a), imagesOf(b)];
  const other = new Map(right.map((image) => [image.path, image]));
  const [one, two] = [a.thresholds[thresholdOf(a)], b.thresholds[thresholdOf(b)]];
  const judge = (image, threshold) => (threshold === undefined ? "" : verdictOf(image, threshold));
  const rows = left.filter((image) => other.has(image.path)).map((image) => {
    const twin = other.get(image.path);
    const [first, second] = [judge(image, one), judge(twin, two)];
    return { image, twin, first, second, unlike: first !== second, apart: Math.abs(image.rank - twin.rank) };
  });
  return rows.sort((x, y) => y.unlike - x.unlike || y.apart - x.apart);
}

function pairContent(a, b) {
  const keys = [...new Set([...Object.keys(a.metrics), ...Object.keys(b.metrics)])];
  const value = (run, key) => run.metrics[key]?.[1] ?? "undefined";
  const numbers = keys.filter((key) => key in data.measures).map((key) => {
    const difference = a.metrics[key] && b.metrics[key] ? b.metrics[key][0] - a.metrics[key][0] : null;
    return [titleOf(key), value(a, key), value(b, key), difference === null ? "undefined" : (difference > 0 ? "+" : "") + significant(difference)];
  });
  const settings = [...new Set([...Object.keys(a.settings), ...Object.keys(b.settings)])]
    .filter((key) => a.settings[key] !== b.settings[key]).map((key) => [key, a.settings[key] ?? "–", b.settings[key] ?? "–"]);
  const parts = [el("div", { class: "columns" },
    el("div", {}, el("h3", {}, "Numbers"), tableOf("Numbers of both runs", ["metric", "A", "B", "B − A"], numbers)),
    el("div", {}, el("h3", {}, "Settings that differ"), settings.length
      ? tableOf("Settings that differ between the two", ["setting", "A", "B"], settings) : el("p", { class: "note" }, "None.")))];
  const drawings = [];
  if (!imagesOf(a) || !imagesOf(b)) {
    parts.push(el("p", { class: "note" }, "The page does not hold the scores of both, so their images cannot be compared."));
    return { parts, drawings };
  }
  const rows = disagreements(a, b);
  const single = imagesOf(a).length + imagesOf(b).length - 2 * rows.length;
  if (!rows.length) {
    parts.push(el("p", { class: "note" }, "The two runs have no test image in common."));
    return { parts, drawings };
  }
  const unlike = rows.filter((row) => row.unlike).length;
  const figure = el("figure", {}, el("figcaption", {}, "Rank of every image"), el("div", { class: "canvas" }));
  const values = rows.map(({ image, twin, first, second, unlike: differ }) => ({
    a: image.rank, b: twin.rank, path: image.path, kind: image.label ? "anomalous" : "nominal",
    verdicts: differ ? "differ" : "agree", told: `A ${first}, B ${second}`,
  }));
  drawings.push([figure, {
    width: 320, height: 320, data: { values },
    layer: [
      { data: { values: [{ a: 0, b: 0 }, { a: 1, b: 1 }] }, mark: { type: "line", color: css("--rule") },
        encoding: { x: { field: "a", type: "quantitative" }, y: { field: "b", type: "quantitative" } } },
      { params: [ZOOM], mark: { type: "point", filled: true, clip: true, opacity: 0.8 },
        encoding: { x: { field: "a", type: "quantitative", title: "rank in A", axis: { format: "%" }, scale: { domain: [0, 1] } },
                    y: { field: "b", type: "quantitative", title: "rank in B", axis: { format: "%" }, scale: { domain: [0, 1] } },
                    color: { field: "kind", type: "nominal", title: null, scale: { domain: ["nominal", "anomalous"], range: [css("--s0"), css("--s1")] } },
                    shape: { field: "verdicts", type: "nominal", title: "verdicts", scale: { domain: ["agree", "differ"], range: ["circle", "triangle-up"] } },
                    size: { condition: { test: "datum.verdicts === 'differ'", value: 110 }, value: 35 },
                    tooltip: [{ field: "path", title: "file" }, { field: "a", title: "rank in A", format: ".1%" }, { field: "b", title: "rank in B", format: ".1%" }, { field: "told", title: "verdicts" }] } },
    ],
  }]);
  const most = 40;
  const picture = (run, image) => (run.pictures[image.i] === undefined ? "" : el("img", {
    src: data.pictures[run.pictures[image.i]], alt: `${image.path} as run ${run === a ? "A" : "B"} sees it`, class: "small", loading: "lazy" }));
  const pictured = rows.slice(0, most).some((row) => picture(a, row.image) || picture(b, row.twin));
  const cells = rows.slice(0, most).map(({ image, twin, first, second, apart }) => [
    el("span", { class: "path" }, image.path), image.label ? image.kind : "nominal",
    significant(image.score), significant(twin.score), percent(image.rank), percent(twin.rank), percent(apart), first, second,
    ...(pictured ? [picture(a, image), picture(b, twin)] : []),
  ]);
  const heads = ["image", "type", "score A", "score B", "rank A", "rank B", "apart", "verdict A", "verdict B", ...(pictured ? ["picture A", "picture B"] : [])];
  parts.push(el("h3", {}, `Images: ${unlike} of ${rows.length} with different verdicts`),
    el("div", { class: "bar" }, thresholdSelect(a),
      el("button", { type: "button", click: () => download("compared.csv", [
        "path,label,defect_type,score_a,score_b,rank_a,rank_b,verdict_a,verdict_b",
        ...rows.map(({ image, twin, first, second }) => [image.path, image.label, image.kind, image.score, twin.score, image.rank, twin.rank, first, second].map(field).join(",")),
      ].join("\n") + "\n") }, "Download all images")),
    single ? el("p", { class: "note" }, `${single} images were tested by only one of the two runs.`) : "",
    figure, tableOf("Images by disagreement", heads, cells, "long"));
  if (rows.length > most) parts.push(el("p", { class: "note" }, `The first ${most} of ${rows.length} images.`));
  return { parts: parts.filter(Boolean), drawings };
}
