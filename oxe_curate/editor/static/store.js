// The state of the page. The text is the document; everything here is derived from it or describes the view.

const remembered = JSON.parse(localStorage.getItem("oxe-curate:view") ?? "{}");

export const S = {
  file: null, // {name, path, base, new, linkTo, index}
  facts: {}, // identity -> facts
  references: {}, // name -> {title, source, weights}
  analysis: null, // of the last valid text
  error: null, // of the current text: {message, line, from}
  findings: [],
  dirty: false,
  undoable: false,
  redoable: false,
  current: null, // identity of the row in focus
  selected: new Set(), // identities
  locked: new Set(),
  keepTotal: false,
  filter: "",
  sort: { key: null, down: true },
  order: [], // identities in the order of the last sort: rows do not jump while a slider moves
  reference: remembered.reference ?? "openvla_oxe_magic_soup_plus",
  samples: remembered.samples ?? null, // training samples; null: one pass
  speed: remembered.speed ?? 28, // samples per second
  panel: remembered.panel ?? "balance",
  stackBy: remembered.stackBy ?? "robot", // grouping of the bar in the summary
  overlay: null, // the second data set of the histograms
  serverGone: false,
  conflict: null, // {text, base} on disk
  changedOnDisk: false,
  draft: null,
  notice: null, // {kind, text}
  proposal: null, // {state, method, step, ...}, as reported by the server
  busy: false,
};

const listeners = new Set();
let scheduled = false;

export function subscribe(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

export function update(patch) {
  Object.assign(S, patch);
  if (scheduled) return;
  scheduled = true;
  queueMicrotask(() => {
    scheduled = false;
    for (const listener of listeners) listener();
  });
}

export function remember(patch) {
  update(patch);
  const { samples, speed, panel, stackBy } = S;
  localStorage.setItem("oxe-curate:view", JSON.stringify({ reference: S.reference.startsWith("proposed") ? undefined : S.reference, samples, speed, panel, stackBy }));
}

let timer;
export function notify(text, kind = "info") {
  clearTimeout(timer);
  update({ notice: { text, kind } });
  timer = setTimeout(() => update({ notice: null }), kind === "error" ? 9000 : 3500);
}

export const fact = (row) => S.facts[row.id] ?? null;
export const ghost = (row) => S.references[S.reference]?.weights[row.id] ?? null;

/** The visible rows: filtered and sorted. */
export function shownRows() {
  const rows = S.analysis?.rows ?? [];
  const words = S.filter.toLowerCase().split(/\s+/).filter(Boolean);
  const matching = words.length === 0 ? rows : rows.filter((row) => {
    const f = fact(row);
    const text = [row.name, row.id, f?.robot, ...(f?.aliases ?? []), ...(f?.cameras ?? []), f?.arms, f?.verdict].join(" ").toLowerCase();
    return words.every((word) => text.includes(word));
  });
  if (S.sort.key === null) return matching;
  const place = new Map(S.order.map((id, i) => [id, i]));
  return [...matching].sort((a, b) => (place.get(a.id) ?? 1e9) - (place.get(b.id) ?? 1e9) || a.row - b.row);
}

const KEYS = {
  name: (row) => row.name.toLowerCase(),
  episodes: (row) => row.episodes,
  steps: (row) => row.steps,
  hours: (row) => row.hours,
  weight: (row) => row.weight,
  share: (row) => row.share,
  epochs: (row) => row.epochs,
  passHours: (row) => row.passHours,
};

/** Sort by a column: numbers largest first, then smallest first, then in the order of the file. */
export function sortBy(key) {
  const first = key !== "name";
  const sort = S.sort.key !== key ? { key, down: first } : S.sort.down === first ? { key, down: !first } : { key: null, down: true };
  update({ sort, order: sorted(sort) });
}

export const resort = () => update({ order: sorted(S.sort) });

function sorted(sort) {
  const rows = [...(S.analysis?.rows ?? [])];
  if (sort.key === null) return rows.map((row) => row.id);
  const value = KEYS[sort.key];
  rows.sort((a, b) => {
    const [x, y] = [value(a), value(b)];
    if (x == null || y == null) return (x == null) - (y == null);
    return (x < y ? -1 : x > y ? 1 : 0) * (sort.down ? -1 : 1);
  });
  return rows.map((row) => row.id);
}
