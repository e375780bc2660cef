
// ---- Scores of a run's test images: ranks, counts, curves and histograms ------------------------
const decoded = new Map();

// The images of a run, [{path, label, kind, score, rank}, …]; null if the page lacks its scores.
// The rank is the share of the other images that have a lower score; ties count half.
function imagesOf(run) {
  if (!run.scores) return null;
  if (!decoded.has(run)) {
    const bytes = Uint8Array.from(atob(run.scores.data), (sign) => sign.charCodeAt(0));
    const scores = run.scores.bytes === 4 ? new Float32Array(bytes.buffer) : new Float64Array(bytes.buffer);
    const { paths, labels, kinds } = data.sets[run.scores.set];
    const found = paths.map((path, i) => ({ i, path, label: labels[i], kind: kinds[i], score: scores[i] }));
    const rising = [...found].sort((a, b) => a.score - b.score);
    for (let from = 0; from < rising.length;) {
      let to = from;
      while (to < rising.length && rising[to].score === rising[from].score) to += 1;
      const rank = rising.length > 1 ? (from + (to - from - 1) / 2) / (rising.length - 1) : 0.5;
      for (; from < to; from += 1) rising[from].rank = rank;
    }
    decoded.set(run, found);
  }
  return decoded.get(run);
}

// Counts and rates at a threshold; rates with denominator 0 are null.
function judged(images, threshold) {
  const count = (label, alarm) => images.filter((image) => image.label === label && (image.score >= threshold) === alarm).length;
  const [tp, fn, fp, tn] = [count(1, true), count(1, false), count(0, true), count(0, false)];
  const rate = (part, whole) => (whole ? part / whole : null);
  return { tp, fn, fp, tn, tpr: rate(tp, tp + fn), fpr: rate(fp, fp + tn), precision: rate(tp, tp + fp) };
}

// Points of ROC and precision–recall, one for each distinct score from the highest down.
function curvesOf(images) {
  const falling = [...images].sort((a, b) => b.score - a.score);
  const positives = falling.filter((image) => image.label).length;
  const negatives = falling.length - positives;
  const roc = [{ fpr: 0, tpr: 0 }];
  const pr = [];
  let [tp, fp] = [0, 0];
  falling.forEach((image, i) => {
    if (image.label) tp += 1; else fp += 1;
    if (falling[i + 1]?.score === image.score) return;
    roc.push({ fpr: fp / negatives, tpr: tp / positives });
    pr.push({ recall: tp / positives, precision: tp / (tp + fp) });
  });
  if (pr.length) pr.unshift({ recall: 0, precision: pr[0].precision });
  return { roc: positives && negatives ? roc : [], pr: positives ? pr : [] };
}

function thinned(list, most = 400) {
  if (list.length <= most) return list;
  return Array.from({ length: most }, (_, i) => list[Math.round((i * (list.length - 1)) / (most - 1))]);
}

// Counts of nominal and anomalous images in bins of equal width.
function histogramOf(images, bins = 40) {
  const scores = images.map((image) => image.score);
  const [low, high] = [Math.min(...scores), Math.max(...scores)];
  const width = (high - low) / bins || 1;
  const rows = [];
  for (const label of [0, 1]) {
    const own = images.filter((image) => image.label === label);
    const counts = new Array(bins).fill(0);
    for (const { score } of own) counts[Math.min(bins - 1, Math.floor((score - low) / width))] += 1;
    const kind = `${label ? "anomalous" : "nominal"} (${own.length})`;
    counts.forEach((count, i) => { if (count) rows.push({ from: low + i * width, to: low + (i + 1) * width, count, zero: 0, kind, label }); });
  }
  return rows;
}

const verdictOf = (image, threshold) => {
  const alarm = image.score >= threshold;
  if (alarm === Boolean(image.label)) return "correct";
  return alarm ? "false alarm" : "missed";
};

const percent = (share) => (share === null ? "undefined" : `${(100 * share).toFixed(1)} %`);
const significant = (value) => String(Number(value.toPrecision(4)));
