// Actions of the page: every change of a number is an operation, which the server turns into changes of the text.

import * as api from "./api.js";
import { S, notify, remember, resort, update } from "./store.js";

let text = null; // the Text
let version = 0;
let analysed = -1;
const draftKey = () => `oxe-curate:draft:${S.file.path}`;

export const setText = (value) => (text = value);
export const currentText = () => text.text;
export const undo = () => text.undo();
export const redo = () => text.redo();
export const goTo = (line) => text.goTo(line);

function gone(error) {
  if (error instanceof api.Refused && error.status !== 401) {
    notify(error.message, "error");
    return;
  }
  keepDraft();
  update({ serverGone: error.status === 401 ? "session" : "stopped" });
}

// ── the text changed ───────────────────────────────────────────────────────────────────────────────────

let analyseTimer, checkTimer, draftTimer;

export function textChanged(byForm) {
  version++;
  const { undo: undoable, redo: redoable } = text.depth;
  const dirty = text.text !== S.file.text;
  update({ dirty, undoable: undoable > 0, redoable: redoable > 0 });
  clearTimeout(analyseTimer);
  if (!byForm) analyseTimer = setTimeout(analyse, 90);
  clearTimeout(checkTimer);
  checkTimer = setTimeout(check, 350);
  clearTimeout(draftTimer);
  draftTimer = setTimeout(keepDraft, 250);
}

export async function analyse() {
  const sent = version;
  try {
    const result = await api.post("/api/analyse", { text: text.text, samples: S.samples });
    if (sent === version) take(result);
  } catch (error) {
    gone(error);
  }
}

function take(result) {
  analysed = version;
  if (!result.ok) {
    update({ error: result.error });
    text.diagnose([{ line: result.error.line, level: "error", message: result.error.message }]);
    text.mark(null);
    return;
  }
  const before = new Set(S.analysis?.rows.map((row) => row.id));
  const recovered = S.error !== null;
  update({ analysis: result, error: null });
  if (result.rows.length !== before.size || result.rows.some((row) => !before.has(row.id))) resort();
  if (recovered) text.diagnose(S.findings);
  markCurrent(false);
}

export async function check() {
  const sent = version;
  try {
    const { findings } = await api.post("/api/check", { text: text.text, samples: S.samples });
    if (sent !== version) return;
    update({ findings });
    if (S.error === null) text.diagnose(findings);
  } catch (error) {
    gone(error);
  }
}

// ── changes by the form ────────────────────────────────────────────────────────────────────────────────

let inFlight = null;
let waiting = null;

/** Apply an operation as one step of the history; within a drag, `held` is its gesture. Resolves when the text is changed. */
export function operate(operation, held = text.begin()) {
  if (inFlight) {
    if (waiting && waiting.held === held) waiting.resolve(false); // the drag continued
    else if (waiting) return waiting.promise.then(() => operate(operation, held));
    waiting = { operation, held };
    waiting.promise = new Promise((resolve) => (waiting.resolve = resolve));
    return waiting.promise;
  }
  inFlight = send(operation, held).finally(() => {
    inFlight = null;
    if (!waiting) return;
    const next = waiting;
    waiting = null;
    operate(next.operation, next.held).then(next.resolve);
  });
  return inFlight;
}

/** Resolves when no change is pending. */
export async function settled() {
  while (inFlight) await inFlight;
}

export const beginGesture = () => text.begin();

async function send(operation, held) {
  if (held.done === null) Object.assign(held, { doc: text.view.state.doc, now: text.view.state.doc }); // it was queued
  const started = performance.now();
  try {
    const { changes, analysis } = await api.post("/api/edit", { text: held.doc.toString(), operation, samples: S.samples });
    if (!text.apply(held, changes)) {
      notify("The text changed in the meantime; nothing was done.", "error");
      return false;
    }
    take(analysis);
    performance.measure("edit", { start: started });
    return true;
  } catch (error) {
    gone(error);
    return false;
  }
}

export function setQuantity(row, quantity, value, held) {
  const operation = { op: "quantity", row: row.row, quantity, value };
  if (S.keepTotal) {
    operation.keepTotal = true;
    operation.locked = S.analysis.rows.filter((r) => S.locked.has(r.id)).map((r) => r.row);
  }
  return operate(operation, held);
}

const rowsOf = (ids) => S.analysis.rows.filter((row) => ids.has(row.id)).map((row) => row.row);

export async function scaleSelected(factor) {
  if (await operate({ op: "scale", rows: rowsOf(S.selected), factor })) notify(`${S.selected.size} weights × ${factor}`);
}

export async function removeRows(ids) {
  if (await operate({ op: "remove", rows: rowsOf(ids) })) {
    update({ selected: new Set([...S.selected].filter((id) => !ids.has(id))) });
    notify(`Removed ${ids.size === 1 ? [...ids][0] : `${ids.size} data sets`}. Undo restores ${ids.size === 1 ? "it" : "them"}.`);
  }
}

export async function addDataset(identity) {
  const fact = S.facts[identity];
  const weight = S.references[S.reference]?.weights[identity] ?? 1;
  if (await operate({ op: "add", datasets: { [fact?.name ?? identity]: weight } })) {
    const row = S.analysis.rows.find((r) => r.id === identity);
    if (row) focusRow(row);
  }
}

export const setSetting = (path, value) => operate({ op: "set", path, value });
export const adopt = (weights, only) => operate({ op: "adopt", weights, ...(only ? { only } : {}) });

/** Request proposed weights; they become a mixture to compare with, to adopt row by row. */
export async function propose(method) {
  try {
    let proposal = await api.post("/api/propose", { text: text.text, method });
    while (proposal.state === "running") {
      update({ proposal });
      await new Promise((resolve) => setTimeout(resolve, 400));
      proposal = await api.get("/api/proposal");
    }
    update({ proposal });
    if (proposal.state !== "done") return;
    const name = `proposed_${method}`;
    const { weights, reasons, absent } = proposal;
    const source = `Computed from the index${absent.length ? `; unchanged, because not in the index: ${absent.join(", ")}` : ""}.`;
    update({ references: { ...S.references, [name]: { title: `Proposed: by ${method}`, source, weights, reasons } } });
    remember({ reference: name, panel: "compare" });
  } catch (error) {
    gone(error);
  }
}

// ── rows and lines ─────────────────────────────────────────────────────────────────────────────────────

export function focusRow(row, scroll = true) {
  update({ current: row.id });
  markCurrent(scroll);
}

function markCurrent(scroll) {
  const row = S.analysis?.rows.find((r) => r.id === S.current);
  if (analysed === version) text.mark(row ? { from: row.from, to: row.to } : null, scroll);
}

export function cursorAt(offset) {
  if (analysed !== version || S.error) return;
  const row = S.analysis?.rows.find((r) => r.from <= offset && offset <= r.to);
  if (row && row.id !== S.current) {
    update({ current: row.id });
    markCurrent(false);
    document.getElementById(`row-${row.row}`)?.scrollIntoView({ block: "nearest" });
  }
}

// ── the file ───────────────────────────────────────────────────────────────────────────────────────────

export async function save(force = false, base = S.file.base) {
  if (S.serverGone) return;
  const content = text.text;
  update({ busy: true });
  try {
    const result = await api.post("/api/save", { text: content, base, force });
    if (!result.saved) {
      update({ conflict: { text: result.text, base: result.base }, changedOnDisk: true });
      return;
    }
    saved(content, result.base);
    notify(S.error ? "Saved, but the text is not a valid mixture" : "Saved");
  } catch (error) {
    gone(error);
  } finally {
    update({ busy: false });
  }
}

function saved(content, base) {
  update({ file: { ...S.file, text: content, base, new: false }, dirty: text.text !== content, conflict: null, changedOnDisk: false });
  if (text.text === content) localStorage.removeItem(draftKey());
}

/** Load the file on disk; undo restores the text. */
export function load(content, base) {
  update({ file: { ...S.file, text: content, base }, conflict: null, changedOnDisk: false });
  text.replace(content);
  textChanged(false);
  localStorage.removeItem(draftKey());
  update({ dirty: false });
}

export function keepDraft() {
  if (!S.file) return;
  if (text.text === S.file.text) localStorage.removeItem(draftKey());
  else localStorage.setItem(draftKey(), JSON.stringify({ text: text.text, base: S.file.base, time: Date.now() }));
}

export function findDraft() {
  const draft = JSON.parse(localStorage.getItem(draftKey()) ?? "null");
  if (draft && draft.text !== S.file.text) update({ draft });
}

export function restoreDraft() {
  const { draft } = S;
  update({ draft: null });
  text.replace(draft.text);
  textChanged(false);
}

export function dropDraft() {
  localStorage.removeItem(draftKey());
  update({ draft: null });
}

export async function watch() {
  try {
    const { base } = await api.get("/api/state");
    if (S.serverGone) update({ serverGone: false });
    if (base !== S.file.base && !S.changedOnDisk && !S.busy) update({ changedOnDisk: true });
    else if (base === S.file.base && S.changedOnDisk && !S.conflict) update({ changedOnDisk: false });
  } catch (error) {
    if (!(error instanceof api.Refused) || error.status === 401) gone(error);
  }
}

/** Fetch the file on disk, to compare. */
export async function fetchConflict() {
  try {
    const file = await api.get("/api/file");
    update({ conflict: { text: file.new ? "" : file.text, base: file.base } });
  } catch (error) {
    gone(error);
  }
}
