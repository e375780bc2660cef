
// ---- Charts: Vega-Lite specifications of the points that are shown -----------------------------
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const EMBED = {
  renderer: "svg",
  ast: true, // interpreted: the page's security policy forbids code made from text
  actions: { export: true, source: false, compiled: false, editor: false },
  i18n: { CLICK_TO_VIEW_ACTIONS: "Download chart", SVG_ACTION: "Save as SVG", PNG_ACTION: "Save as PNG" },
  loader: { http: false },
};

function theme() {
  const [ink, soft, rule] = ["--ink", "--soft", "--rule"].map(css);
  const labels = { labelColor: soft, titleColor: ink, labelFontSize: 11, titleFontSize: 12, labelLimit: 180 };
  return {
    background: null,
    aria: false, // the chart is one picture with a name; the arrow keys announce its points
    font: "system-ui, sans-serif",
    view: { stroke: null },
    axis: { ...labels, gridColor: rule, domainColor: soft, tickColor: soft, titleFontWeight: 500 },
    legend: { ...labels, labelLimit: 300, orient: "bottom", columns: 4, symbolLimit: 60, titleFontWeight: 500, symbolOpacity: 1 },
    header: { ...labels, labelFontSize: 12, labelColor: ink, titleFontWeight: 500 },
    text: { fill: ink },
    range: { category: [0, 1, 2, 3, 4, 5, 6, 7].map((i) => css(`--s${i}`)) },
  };
}

// The element of tooltips; while a dialog is open, it is inside it, because dialogs cover the page.
const tip = el("div", { id: "vg-tooltip-element", class: "vg-tooltip" });
document.body.append(tip);

const ZOOM = {
  name: "zoom", bind: "scales",
  select: { type: "interval", zoom: "wheel![event.ctrlKey || event.metaKey]" },
};
const AT = { name: "at", value: -1 };
const largeAt = (usual, large) => ({ condition: { test: "datum.id === at", value: large }, value: usual });

// Whether values lie more evenly on a logarithmic axis.
function logarithmic(values) {
  const distinct = [...new Set(values)].sort((a, b) => a - b);
  if (distinct.length < 2 || distinct[0] <= 0 || distinct.at(-1) < 8 * distinct[0]) return false;
  const uneven = (list) => {
    const gaps = list.slice(1).map((value, i) => value - list[i]);
    return (Math.max(...gaps) * gaps.length) / (list.at(-1) - list[0]);
  };
  return uneven(distinct.map(Math.log)) < uneven(distinct);
}

// A scale over values, enlarged `closer` times around their middle.
function scaleOf(values, closer, log = logarithmic(values)) {
  const type = log ? "log" : "linear";
  if (!values.length) return { type };
  const forth = log ? Math.log : Number;
  const back = log ? Math.exp : Number;
  const [low, high] = [Math.min(...values), Math.max(...values)].map(forth);
  const half = ((high - low) / 2 || Math.abs(high) * 0.05 || 0.5) * (1.12 / closer);
  const middle = (low + high) / 2;
  return { type, nice: false, domain: [back(middle - half), back(middle + half)] };
}

// The horizontal axis of a factor.
function acrossOf(factor, rows, closer) {
  if (!factor.numeric) return { field: "x", type: "ordinal", title: factor.key, sort: factor.values };
  const values = [...new Set(rows.map((row) => row.x))];
  const axis = values.length <= 12 ? { values, format: "~g", labelOverlap: true } : { labelOverlap: true };
  return { field: "x", type: "quantitative", title: factor.key, axis, scale: scaleOf(values, closer) };
}

function rowOf(point, key) {
  const [value, text, ends] = point.values[key] ?? [null];
  if (value === null) return null;
  return {
    id: point.id, y: value, text, point: `${point.rank ? `#${point.rank} ` : ""}${point.label}`,
    low: ends?.[0] ?? null, high: ends?.[1] ?? null,
  };
}

const tooltip = (extra = []) => [
  { field: "point", title: "point" }, { field: "text", title: "value" }, ...extra,
];

function pick(chart, key, label, options, usual) {
  const asked = state.get(key);
  const value = options.some(([one]) => one === asked) ? asked : usual;
  if (options.length > 1) {
    const change = (next) => go({ [key]: next === usual ? null : next });
    chart.controls.push(selectOf(label, options, value, change));
  }
  return value;
}

const keysOf = (list) => list.map((factor) => [factor.key, factor.key]);

// The setting that colours and shapes stand for: the one with the most values, up to `most`.
function styled(list, most = 8) {
  const fitting = list.filter((factor) => factor.values.length > 1 && factor.values.length <= most);
  return fitting.sort((a, b) => b.values.length - a.values.length)[0]?.key ?? "";
}

const styleOf = (key, factor) => (key
  ? { color: { field: "style", type: "nominal", title: key, sort: factor?.values },
      shape: { field: "style", type: "nominal", title: key, sort: factor?.values } }
  : { color: { value: css("--s0") } });

const CHARTS = {
  curves(chart, part, points) {
    const numeric = part.factors.filter((factor) => factor.numeric).sort((a, b) => b.values.length - a.values.length);
    const x = pick(chart, "x", "Across", keysOf(part.factors), (numeric[0] ?? part.factors[0]).key);
    const others = part.factors.filter((factor) => factor.key !== x);
    const colour = pick(chart, "colour", "Colour", [["", "none"], ...keysOf(others)], styled(others));
    const rest = others.filter((factor) => factor.key !== colour);
    const usual = styled(rest, MANY) || (part.main.length > 1 ? "metrics" : "");
    const facet = pick(chart, "facet", "Small charts for", [
      ["", "nothing"], ...(part.main.length > 1 ? [["metrics", "the main metrics"]] : []), ...keysOf(rest),
    ], usual);
    const factor = part.factors.find((one) => one.key === x);
    const own = metric();
    const keys = facet === "metrics" ? [...new Set([own, ...part.main])] : [own];
    const rows = keys.flatMap((key) => points.flatMap((point) => {
      const row = rowOf(point, key);
      const [value, text] = point.settings[x];
      if (!row || (factor.numeric && value === null)) return [];
      return [{
        ...row, x: factor.numeric ? value : text, style: colour ? point.settings[colour][1] : "",
        line: others.map((one) => point.settings[one.key][1]).join(" · "),
        facet: facet === "metrics" ? titleOf(key) : facet ? point.settings[facet][1] : "",
      }];
    }));
    const order = facet === "metrics" ? keys.map(titleOf) : part.factors.find((one) => one.key === facet)?.values;
    const scale = scaleOf(rows.flatMap((row) => [row.y, row.low ?? row.y, row.high ?? row.y]), chart.closer, false);
    const y = {
      field: "y", type: "quantitative", title: facet === "metrics" ? null : titleOf(own),
      scale: facet === "metrics" ? { zero: false } : scale,
    };
    const across = acrossOf(factor, rows, chart.closer);
    const style = styleOf(colour, others.find((one) => one.key === colour));
    const { shape, ...plain } = style;
    const layer = [
      { mark: { type: "rule", clip: true, opacity: 0.55 }, transform: [{ filter: "isValid(datum.low)" }],
        encoding: { x: across, y: { ...y, field: "low" }, y2: { field: "high" }, ...plain } },
      { mark: { type: "line", strokeWidth: 1.8, clip: true },
        encoding: { x: across, y, detail: { field: "line" }, ...plain } },
      { mark: { type: "point", filled: true, clip: true, opacity: 1 }, ...(factor.numeric ? { params: [ZOOM] } : {}),
        encoding: { x: across, y, ...style, size: largeAt(55, 220), tooltip: tooltip() } },
    ];
    if (!factor.numeric) layer.splice(1, 1); // no lines: there is nothing between two words
    return faceted(chart, rows, layer, facet && facet !== "metrics" ? facet : null, order, facet === "metrics");
  },

  shares(chart, part, points) {
    const own = metric();
    const colour = styled(part.factors);
    const rows = points.flatMap((point) => (point.curves[own] ?? []).map(([share, value]) => ({
      id: point.id, x: share, y: value, text: value.toFixed(4), point: point.label,
      share: `${(100 * share).toPrecision(3)} %`, style: colour ? point.settings[colour][1] : "",
    })));
    const ticks = [...new Set(rows.map((row) => row.x))];
    const x = { field: "x", type: "quantitative", title: "memory, share of the training patches",
                axis: { values: ticks, format: ".2~%", labelOverlap: true }, scale: scaleOf(ticks, chart.closer) };
    const y = { field: "y", type: "quantitative", title: titleOf(own),
                scale: scaleOf(rows.map((row) => row.y), chart.closer, false) };
    const { shape, ...plain } = styleOf(colour, part.factors.find((one) => one.key === colour));
    return faceted(chart, rows, [
      { mark: { type: "line", clip: true }, encoding: { x, y, detail: { field: "id" }, ...plain } },
      { mark: { type: "point", filled: true, clip: true, opacity: 1 }, params: [ZOOM],
        encoding: { x, y, ...plain, ...(shape ? { shape } : {}), size: largeAt(55, 220),
                    tooltip: tooltip([{ field: "share", title: "memory" }]) } },
    ]);
  },

  heat(chart, part, points) {
    const byCount = [...part.factors].sort((a, b) => b.values.length - a.values.length);
    const down = pick(chart, "down", "Down", keysOf(part.factors), byCount[0].key);
    const left = part.factors.filter((factor) => factor.key !== down);
    const next = byCount.find((factor) => factor.key !== down);
    const across = pick(chart, "across", "Across", keysOf(left), next.key);
    const own = metric();
    const falls = data.measures[own].falls;
    const cells = new Map();
    for (const point of points) {
      const row = rowOf(point, own) ?? { id: point.id, y: null, text: `undefined: ${point.values[own]?.[2] ?? ""}`, point: point.label };
      const [x, z] = [point.settings[across][1], point.settings[down][1]];
      const before = cells.get(JSON.stringify([x, z]));
      const better = !before || before.y === null || (row.y !== null && (falls ? row.y < before.y : row.y > before.y));
      if (better) cells.set(JSON.stringify([x, z]), { ...row, x, z, shown: row.y === null ? "undefined" : row.text.split(" ")[0] });
    }
    const rows = [...cells.values()];
    const order = (key) => part.factors.find((factor) => factor.key === key).values;
    const x = { field: "x", type: "ordinal", title: across, sort: order(across), axis: { labelAngle: 0, orient: "top", grid: false } };
    const y = { field: "z", type: "ordinal", title: down, sort: order(down), axis: { grid: false } };
    const ends = [css("--heat-low"), css("--heat-high")];
    const defined = rows.filter((row) => row.y !== null).map((row) => row.y);
    const domain = defined.length ? [Math.min(...defined), Math.max(...defined)] : [0, 1];
    const columns = new Set(rows.map((row) => row.x)).size;
    const lines = new Set(rows.map((row) => row.z)).size;
    return {
      rows,
      spec: {
        data: { values: rows }, params: [AT],
        width: Math.max(62 * columns, Math.min(chart.width - 170, 110 * columns)), height: Math.max(60, 34 * lines),
        encoding: { x, y },
        layer: [
          { mark: { type: "rect", cornerRadius: 6, stroke: css("--card"), strokeWidth: 2 },
            encoding: {
              color: { field: "y", type: "quantitative", legend: null, scale: { domain, range: falls ? ends.reverse() : ends } },
              strokeWidth: largeAt(2, 4), tooltip: tooltip(),
            } },
          { mark: { type: "text", fontSize: 12, limit: 100 },
            encoding: { text: { field: "shown" }, tooltip: { value: null } } },
        ],
      },
    };
  },

  pareto(chart, part, points) {
    const cost = pick(chart, "cost", "Cost", part.costs.map((key) => [key, titleOf(key)]), part.costs[0]);
    const own = metric();
    const sign = data.measures[own].falls ? 1 : -1;
    const rows = points.flatMap((point) => {
      const [row, price] = [rowOf(point, own), rowOf(point, cost)];
      return row && price ? [{ ...row, x: price.y, cost: price.text, rank: point.rank ? String(point.rank) : "" }] : [];
    });
    for (const row of rows) {
      row.front = !rows.some((other) => other.x <= row.x && sign * other.y <= sign * row.y
        && (other.x < row.x || sign * other.y < sign * row.y));
    }
    const x = { field: "x", type: "quantitative", title: titleOf(cost), scale: scaleOf(rows.map((row) => row.x), chart.closer),
                axis: { labelOverlap: true } };
    const y = { field: "y", type: "quantitative", title: titleOf(own), scale: scaleOf(rows.map((row) => row.y), chart.closer, false) };
    const front = [{ filter: "datum.front" }];
    return faceted(chart, rows, [
      { mark: { type: "line", interpolate: "step-after", clip: true, color: css("--s0") }, transform: front,
        encoding: { x, y, order: { field: "x" } } },
      { mark: { type: "point", filled: true, clip: true, opacity: 1 }, params: [ZOOM],
        encoding: { x, y, size: largeAt(60, 220),
                    color: { condition: { test: "datum.front", value: css("--s0") }, value: css("--back") },
                    tooltip: tooltip([{ field: "cost", title: titleOf(cost) }]) } },
      { mark: { type: "text", dx: -7, dy: -8, align: "right", fontWeight: 600, clip: true }, transform: front,
        encoding: { x, y, text: { field: "rank" } } },
    ]);
  },

  parallel(chart, part, points) {
    const own = metric();
    const axes = [
      ...part.factors.map((factor) => ({ ...factor, of: (point) => point.settings[factor.key] })),
      ...[...new Set([...part.costs, own])].map((key) => ({
        key: titleOf(key), numeric: true, values: [],
        of: (point) => point.values[key]?.slice(0, 2) ?? [null, ""],
      })),
    ];
    const rows = [];
    const ticks = [];
    for (const axis of axes) {
      const values = points.map((point) => axis.of(point)[0]).filter((value) => value !== null);
      const log = axis.numeric && logarithmic(values);
      const at = log ? Math.log : Number;
      const [low, high] = [Math.min(...values), Math.max(...values)];
      const words = axis.values.filter((word) => points.some((point) => axis.of(point)[1] === word));
      const share = (value, word) => {
        if (!axis.numeric) return words.length > 1 ? words.indexOf(word) / (words.length - 1) : 0.5;
        return value === null ? null : high > low ? (at(value) - at(low)) / (at(high) - at(low)) : 0.5;
      };
      const marks = new Map();
      for (const point of points) {
        const [value, word] = axis.of(point);
        const y = share(value, word);
        rows.push({ ...(rowOf(point, own) ?? { id: point.id, text: "undefined", point: point.label, y: null }), best: point.values[own]?.[0] ?? null, axis: axis.key, y });
        if (y !== null) marks.set(word.split(" ± ")[0], y);
      }
      const sorted = [...marks].sort((a, b) => a[1] - b[1]);
      let last = -1;
      sorted.forEach(([word, y], i) => {
        if (axis.values.length > MANY || !axis.values.length ? i % Math.max(1, sorted.length - 1) : y - last < 0.06 && i) return;
        last = y;
        ticks.push({ axis: axis.key, y, word });
      });
    }
    const x = { field: "axis", type: "ordinal", sort: axes.map((axis) => axis.key), title: null,
                axis: { labelAngle: 0, orient: "top", domain: false, ticks: false, labelLimit: 150, labelColor: css("--ink"), labelPadding: 16 },
                scale: { type: "point", padding: 0.5 } };
    const y = { field: "y", type: "quantitative", axis: null, scale: { domain: [-0.02, 1.02] } };
    const ends = [css("--back"), css("--s0")];
    return {
      rows: points.map((point) => rowOf(point, own)).filter(Boolean),
      spec: {
        params: [AT], width: Math.max(chart.width - 40, 110 * axes.length), height: 300,
        layer: [
          { data: { values: axes.map((axis) => ({ axis: axis.key })) }, mark: { type: "rule", color: css("--soft") },
            encoding: { x, y: { datum: 0, type: "quantitative", axis: null }, y2: { datum: 1 } } },
          { data: { values: rows }, mark: { type: "line", strokeJoin: "round" },
            encoding: { x, y, detail: { field: "id" }, tooltip: tooltip(),
                        strokeWidth: largeAt(1.8, 5), opacity: largeAt(0.75, 1),
                        color: { field: "best", type: "quantitative", title: titleOf(own),
                                 legend: { gradientLength: 140 },
                                 scale: { zero: false, range: data.measures[own].falls ? ends.reverse() : ends } } } },
          ...[{ stroke: css("--card"), strokeWidth: 4, strokeJoin: "round" }, {}].map((halo) => ({
            data: { values: ticks }, mark: { type: "text", align: "left", dx: 6, fontSize: 11, ...halo },
            encoding: { x, y, text: { field: "word" } },
          })),
        ],
      },
    };
  },
};

// One chart, or one for each value of the field "facet", side by side.
function faceted(chart, rows, layer, name = null, order = null, independent = false) {
  const values = new Set(rows.map((row) => row.facet ?? ""));
  const shared = { data: { values: rows }, params: [AT] };
  if (values.size < 2) {
    return { rows, spec: { ...shared, width: Math.min(chart.width - 80, 760), height: 280, layer } };
  }
  const columns = Math.max(1, Math.min(values.size, Math.floor(chart.width / 330)));
  const facet = { field: "facet", type: "nominal", title: name, sort: order };
  return {
    rows,
    spec: {
      ...shared, columns, facet, spacing: 24,
      spec: { width: Math.floor((chart.width - 40) / columns - 70), height: 220, layer },
      resolve: independent ? { scale: { y: "independent" } } : {},
    },
  };
}

// ---- Charts on the page ------------------------------------------------------------------------
const points = data.points.map((point, id) => ({ ...point, id }));
const charts = [...document.querySelectorAll("[data-chart]")].map((place) => ({ place, closer: 1, at: -1, signature: "" }));
let drawing = Promise.resolve();

async function embed(place, spec, name) {
  place.vega?.finalize();
  place.vega = await vegaEmbed(place, { ...spec, autosize: { type: "pad" } }, { mode: "vega-lite", ...EMBED, config: theme() });
  const drawn = place.querySelector("svg.marks");
  for (const one of drawn.querySelectorAll("[role]")) {
    one.removeAttribute("role"); // screen readers would announce symbols without names
    one.removeAttribute("aria-roledescription");
  }
  drawn.removeAttribute("aria-roledescription");
  drawn.setAttribute("role", "img");
  drawn.setAttribute("aria-label", name);
  place.querySelector("summary").setAttribute("aria-label", `Download chart: ${name}`);
  return place.vega.view;
}

function drawCharts(anew = false) {
  drawing = drawing.then(async () => {
    for (const chart of charts) {
      await draw(chart, anew);
      await new Promise((done) => { setTimeout(done); }); // handles clicks before the next chart
    }
  });
  return drawing;
}

function redraw() {
  showRun(true);
  return drawCharts(true);
}

async function draw(chart, anew) {
  const kind = chart.place.dataset.chart;
  const place = Number(chart.place.dataset.part);
  const width = chart.place.clientWidth;
  const own = points.filter((point) => point.part === place && shown.has(point.id));
  const ignored = new Set(["run", "at", "a", "b", "hide", "by"]);
  const asked = [...state].filter(([key]) => !ignored.has(key));
  const signature = JSON.stringify([asked, width, chart.closer]);
  if (!anew && signature === chart.signature) return;
  chart.signature = signature;
  chart.controls = [];
  chart.width = width;
  const made = CHARTS[kind](chart, data.parts[place], own);
  const caption = `${chart.place.dataset.caption}: ${titleOf(metric())}`;
  const focus = chart.place.contains(document.activeElement) ? controls(chart.place).indexOf(document.activeElement) : -1;
  const target = el("div", {
    class: "canvas", tabindex: 0, role: "group",
    "aria-label": `${caption}. Arrow keys go from point to point, Enter opens its run, + and − zoom, 0 shows all.`,
    keydown: (event) => keys(event, chart),
  });
  const zoomable = kind !== "heat" && kind !== "parallel";
  const zoom = (text, name, closer) => el("button", {
    type: "button", "aria-label": name, title: name, click: () => closerBy(chart, closer),
  }, text);
  chart.rows = made.rows;
  chart.readout = el("p", { class: "readout", "aria-live": "polite" });
  chart.place.replaceChildren(
    el("div", { class: "bar" }, chart.controls, zoomable ? el("span", { class: "zooms" },
      zoom("+", "zoom in", 1.6), zoom("−", "zoom out", 1 / 1.6), zoom("all", "show all", 0)) : ""),
    target, chart.readout);
  controls(chart.place)[focus]?.focus();
  if (!made.rows.length) {
    target.replaceWith(el("p", { class: "note" }, `No point that is shown has ${titleOf(metric())}${kind === "shares" ? " at several shares" : ""}.`));
    return;
  }
  chart.view = await embed(target, made.spec, caption);
  chart.view.addEventListener("click", (event, item) => {
    const id = item?.datum?.id;
    if (id === undefined || (item.mark.marktype === "line" && kind === "curves")) return;
    if (event.pointerType === "touch") tell(chart, made.rows.findIndex((row) => row.id === id));
    else openPoint(id);
  });
}

function openPoint(id) {
  const own = points[id].runs.map((i) => data.runs[i]);
  go({ run: (own.find((run) => run.finished) ?? own[0]).name }, true);
}

function closerBy(chart, factor) {
  chart.closer = factor ? chart.closer * factor : 1;
  drawing = drawing.then(() => draw(chart, false));
}

// Shows the point that the arrow keys or a tap have reached, with its text below the chart.
function tell(chart, index) {
  chart.at = (index + chart.rows.length) % chart.rows.length;
  const row = chart.rows[chart.at];
  chart.readout.replaceChildren(`${row.point}: ${row.text} `,
    el("button", { type: "button", click: () => openPoint(row.id) }, "open run"));
  chart.view.signal("at", row.id).runAsync();
}

function keys(event, chart) {
  if (event.target.closest("details, button")) return;
  const step = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
  const zoom = { "+": 1.6, "=": 1.6, "-": 1 / 1.6, 0: 0 }[event.key];
  if (step) tell(chart, chart.at < 0 ? 0 : chart.at + step);
  else if (event.key === "Enter" && chart.at >= 0) openPoint(chart.rows[chart.at].id);
  else if (zoom !== undefined) closerBy(chart, zoom);
  else return;
  event.preventDefault();
}
