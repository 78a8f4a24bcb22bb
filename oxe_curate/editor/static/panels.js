// The tabs below the text: balance, data set, samples, compare, checks, settings.

import { html, useEffect, useState } from "/vendor/preact.js";
import * as act from "./actions.js";
import * as api from "./api.js";
import { Bar, colour, Icon, NumberField } from "./controls.js";
import * as format from "./format.js";
import { S, fact, ghost, remember, update } from "./store.js";
import { Dataset } from "./dataset.js";

export const PANELS = [
  ["balance", "Balance"], ["dataset", "Data set"], ["samples", "Samples"], ["compare", "Compare"], ["checks", "Checks"], ["settings", "Settings"],
];

export function Panels() {
  const errors = S.findings.filter((f) => f.level === "error").length;
  const changed = differences().length;
  const badge = { checks: S.findings.length || null, compare: changed || null };
  const move = (event) => {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!by) return;
    const at = PANELS.findIndex(([key]) => key === S.panel);
    const next = PANELS[(at + by + PANELS.length) % PANELS.length][0];
    remember({ panel: next });
    document.getElementById(`tab-${next}`).focus();
  };
  const Shown = { balance: Balance, dataset: Dataset, samples: Samples, compare: Compare, checks: Checks, settings: Settings }[S.panel] ?? Balance;
  return html`<div class="tabs" role="tablist" aria-label="Details of the mixture" onKeyDown=${move}>
      ${PANELS.map(([key, label]) => html`<button key=${key} id=${`tab-${key}`} role="tab" aria-selected=${S.panel === key} aria-controls="panel" tabindex=${S.panel === key ? 0 : -1} onClick=${() => remember({ panel: key })}>${label}${badge[key] ? html` <span class=${`badge${key === "checks" && errors ? " bad" : ""}`}>${badge[key]}</span>` : ""}</button>`)}
    </div>
    <div id="panel" class="panel" role="tabpanel" aria-labelledby=${`tab-${S.panel}`} tabindex="0"><${Shown} key=${S.panel} /></div>`;
}

// ── balance ────────────────────────────────────────────────────────────────────────────────────────────

const RATES = [[0, 4, "below 4 Hz"], [4, 8, "4 to 8 Hz"], [8, 16, "8 to 16 Hz"], [16, 31, "16 to 30 Hz"], [31, 1e9, "above 30 Hz"]];
const rate = (hz) => (hz == null ? "unknown" : RATES.find(([low, high]) => low <= hz && hz < high)[2]);

export const GROUPS = {
  robot: ["Robot", (f) => [f?.robot ?? "unknown"]],
  dataset: ["Data set", (f, row) => [row.name]],
  camera: ["Camera", (f) => (f?.cameras.length ? f.cameras : ["none"])],
  rate: ["Control rate", (f) => [rate(f?.hz)]],
};

/** [group, share of the samples], largest first. */
export function grouped(key) {
  const sums = new Map();
  for (const row of S.analysis.rows) for (const name of GROUPS[key][1](fact(row), row)) sums.set(name, (sums.get(name) ?? 0) + (row.share ?? 0));
  return [...sums].sort((a, b) => b[1] - a[1]);
}

function Balance() {
  return html`<div class="balance">${Object.entries(GROUPS).map(([key, [label]]) => {
    const groups = grouped(key);
    const largest = Math.max(...groups.map(([, share]) => share), 1e-9);
    const shown = groups.slice(0, 12);
    const rest = groups.slice(12).reduce((sum, [, share]) => sum + share, 0);
    return html`<section key=${key}><h3>${label} <small>${key === "camera" ? "% of the samples with this camera" : "% of the samples"}</small></h3>
      <ul class="bars">${shown.map(([name, share], i) => html`<li key=${name} title=${`${name}: ${format.percent(share)} %`}><span class="label">${name}</span><${Bar} share=${share} scale=${largest} colour=${key === "robot" ? colour(i) : undefined} /><span class="value">${format.percent(share)}</span></li>`)}
      ${rest > 0 && html`<li><span class="label muted">${groups.length - 12} more</span><${Bar} share=${rest} scale=${largest} colour="var(--muted)" /><span class="value">${format.percent(rest)}</span></li>`}</ul></section>`;
  })}</div>`;
}

// ── samples ────────────────────────────────────────────────────────────────────────────────────────────

let drawing = Promise.resolve();

function Samples() {
  const [sheet, setSheet] = useState(null);
  const [offset, setOffset] = useState(0);
  const [error, setError] = useState(null);
  const key = JSON.stringify([S.analysis.rows.map((r) => [r.name, r.weight, r.splits]), S.analysis.settings, offset]);
  useEffect(() => {
    let live = true;
    const timer = setTimeout(() => {
      // one request at a time: with a large index, drawing takes seconds
      drawing = drawing.then(() => live && api.post("/api/samples", { text: act.currentText(), offset, count: 64 }).then(
        (found) => live && (setSheet(found), setError(null)),
        (e) => live && setError(e.message),
      ));
    }, sheet ? 300 : 0);
    return () => ((live = false), clearTimeout(timer));
  }, [key]);
  if (error) return html`<p class="empty">${error}</p>`;
  if (!sheet) return html`<p class="empty">Drawing samples…</p>`;
  const names = [...new Set(S.analysis.rows.map((r) => r.name))];
  return html`<div class="toolbar"><span>Rows <b>${format.exact(offset + 1)} to ${format.exact(Math.min(offset + 64, sheet.rows))}</b> of ${format.exact(sheet.rows)} in <code>${sheet.shard}</code>, seed ${S.analysis.settings.seed}</span>
      <span class="spring"></span>
      <button disabled=${offset === 0} aria-label="Previous 64" onClick=${() => setOffset(Math.max(0, offset - 64))}>Previous</button>
      <button disabled=${offset + 64 >= sheet.rows} aria-label="Next 64" onClick=${() => setOffset(offset + 64)}>Next</button></div>
    <ul class="legend">${names.filter((n) => sheet.samples.some((s) => s.name === n)).map((n) => html`<li key=${n}><i style=${{ background: colour(names.indexOf(n)) }}></i>${n} <b>${sheet.samples.filter((s) => s.name === n).length}</b></li>`)}</ul>
    <ol class="sheet">${sheet.samples.map((s) => html`<li key=${s.sampleId} title=${`${s.name}, step ${s.step + 1} of ${s.steps}${s.copy ? `, copy ${s.copy + 1}` : ""}\n${s.instruction}\n${s.sampleId}`} style=${{ borderColor: colour(names.indexOf(s.name)) }}>
      <img loading="lazy" alt=${`${s.name}: ${s.instruction}`} src=${`/api/frame/${encodeURIComponent(s.dataset)}/${s.role}/${s.file}/${s.row}/${s.step}?h=144&swap=${s.swap ? 1 : 0}`} />
      <span>${s.instruction || "no instruction"}</span></li>`)}</ol>`;
}

// ── compare ────────────────────────────────────────────────────────────────────────────────────────────

/** Data sets whose weight differs from the reference: [{id, name, mine, theirs}]. */
export function differences() {
  const weights = S.references[S.reference]?.weights ?? {};
  const rows = S.analysis?.rows ?? [];
  const present = new Set(rows.map((row) => row.id));
  return [
    ...rows.filter((row) => row.weight !== (weights[row.id] ?? null)).map((row) => ({ id: row.id, name: row.name, mine: row.weight, theirs: weights[row.id] ?? null })),
    ...Object.entries(weights).filter(([id]) => !present.has(id)).map(([id, weight]) => ({ id, name: S.facts[id]?.name ?? id, mine: null, theirs: weight })),
  ];
}

export function ReferenceSelect({ id }) {
  const projects = Map.groupBy(Object.entries(S.references), ([, r]) => r.title.split(":")[0]);
  return html`<select id=${id} value=${S.reference} onChange=${(e) => remember({ reference: e.target.value })}>
    ${[...projects].map(([project, list]) => html`<optgroup key=${project} label=${project}>${list.map(([name, r]) => html`<option key=${name} value=${name} selected=${name === S.reference}>${r.title.split(": ").slice(1).join(": ")}</option>`)}</optgroup>`)}
  </select>`;
}

function Compare() {
  const list = differences();
  const reference = S.references[S.reference];
  if (!reference) return html`<p class="empty">This installation has no published mixtures.</p>`;
  const kind = (d) => (d.theirs === null ? "only here" : d.mine === null ? "missing here" : `× ${Number((d.mine / d.theirs).toPrecision(3))}`);
  return html`<div class="toolbar"><label for="compare-with">With</label><${ReferenceSelect} id="compare-with" />
      <button disabled=${list.length === 0} onClick=${() => act.adopt(reference.weights)}>Adopt all ${list.length || ""}</button></div>
    <${Propose} />
    <p class="muted small">${reference.source}</p>
    ${list.length === 0 ? html`<p class="empty"><${Icon} name="ok" /> Same data sets and weights.</p>` : html`<table class="list"><thead><tr><th scope="col">Data set</th><th scope="col" class="num">Here</th><th scope="col" class="num">Reference</th><th scope="col">Change</th><td></td></tr></thead><tbody>
      ${list.map((d) => html`<tr key=${d.id} class=${reference.reasons?.[d.id] ? "has-reason" : ""}><th scope="row" title=${d.name}>${d.name}</th><td class="num">${d.mine === null ? "–" : format.weight(d.mine)}</td><td class="num">${d.theirs === null ? "–" : format.weight(d.theirs)}</td><td class="muted">${kind(d)}</td>
        <td><button class="small" aria-label=${`${d.theirs === null ? "Remove" : d.mine === null ? "Add" : "Adopt"} ${d.name}`} onClick=${() => act.adopt(reference.weights, [d.id])}>${d.theirs === null ? "Remove" : d.mine === null ? "Add" : "Adopt"}</button></td></tr>
        ${reference.reasons?.[d.id] && html`<tr key=${`${d.id} why`} class="reasons"><td colspan="5">${reference.reasons[d.id]}</td></tr>`}`)}
    </tbody></table>`}`;
}

function Propose() {
  const { proposal } = S;
  if (!S.file.index) return null;
  if (proposal?.state === "running") return html`<p class="empty" role="status">Computing weights by ${proposal.method}: ${proposal.step}…</p>`;
  return html`<div class="toolbar"><span>Propose weights</span>
    <button title="Lowers the weight of data with few tasks and scenes; takes seconds" onClick=${() => act.propose("diversity")}>By diversity</button>
    <button title="Trains small models and sets weights by excess loss; takes minutes" onClick=${() => act.propose("proxy")}>By proxy model</button></div>
    ${proposal?.state === "failed" && html`<p class="bad">${proposal.error}</p>`}`;
}

// ── checks ─────────────────────────────────────────────────────────────────────────────────────────────

function Checks() {
  if (S.findings.length === 0) return html`<p class="empty"><${Icon} name="ok" /> No problems found.</p>`;
  return html`<ul class="findings">${S.findings.map((f, i) => html`<li key=${`${f.code}${f.key}${i}`} class=${f.level}><${Icon} name=${f.level} />
    <div><span class="hidden">${f.level}: </span>${f.message}${f.advice ? html` <span class="muted">${f.advice}</span>` : ""}</div>
    ${f.line ? html`<button class="small" onClick=${() => act.goTo(f.line)} aria-label=${`Go to line ${f.line}`}>Line ${f.line}</button>` : ""}</li>`)}</ul>`;
}

// ── settings ───────────────────────────────────────────────────────────────────────────────────────────

const ROLES = ["primary", "secondary", "extra", "wrist", "egocentric"];

function Settings() {
  const s = S.analysis.settings;
  const number = (label, path, hint, whole = true) => {
    const value = path.reduce((v, step) => v?.[step], s);
    const nullable = path[1] === "size";
    return html`<label class="setting"><span>${label}</span><${NumberField} kind="boxed" label=${label} shown=${value == null ? "" : String(value)} placeholder=${nullable ? "as stored" : ""} empty=${nullable}
      onCommit=${(v) => act.setSetting(path, v === null ? null : whole ? Math.round(v) : v)} /><small>${hint}</small></label>`;
  };
  const choice = (label, path, options, hint) => html`<label class="setting"><span>${label}</span><select value=${s[path[0]]} onChange=${(e) => act.setSetting(path, e.target.value)}>${options.map((o) => html`<option key=${o} value=${o} selected=${o === s[path[0]]}>${o}</option>`)}</select><small>${hint}</small></label>`;
  const cameras = s.image.cameras;
  return html`<div class="settings">
    <label class="setting"><span>Name</span><input type="text" class="boxed" value=${s.name ?? ""} onChange=${(e) => act.setSetting(["name"], e.target.value)} /><small>written to the output folder</small></label>
    ${number("Seed", ["seed"], "determines fractional copies and the order of rows")}
    ${number("Window", ["window"], "observations per sample")}
    ${number("Stride", ["stride"], "steps between samples, at most the window")}
    ${number("Chunk", ["chunk"], "actions per observation")}
    <fieldset class="setting"><legend>Cameras</legend><div>${ROLES.map((role) => html`<label key=${role}><input type="checkbox" checked=${cameras.includes(role)} onChange=${(e) => act.setSetting(["image", "cameras"], e.target.checked ? [...cameras, role] : cameras.filter((c) => c !== role))} />${role}</label>`)}</div></fieldset>
    ${number("Image size", ["image", "size"], "pixels per side; empty keeps the original bytes")}
    ${number("JPEG quality", ["image", "quality"], "of resized frames")}
    <label class="setting"><span>Images</span><select value=${s.image.copy === false ? "reference" : "copy"} onChange=${(e) => act.setSetting(["image", "copy"], e.target.value === "copy")}>${["copy", "reference"].map((o) => html`<option key=${o} value=${o} selected=${(o === "reference") === (s.image.copy === false)}>${o}</option>`)}</select><small>reference: shards name the place of each frame in the source instead of copying it</small></label>
    ${number("Lower bound", ["bounds", "low"], "the quantile that becomes −1", false)}
    ${number("Upper bound", ["bounds", "high"], "the quantile that becomes +1", false)}
    ${choice("Bins", ["bins"], ["openvla", "uniform"], "openvla: 256 edges, as in the released checkpoints; uniform: 256 intervals")}
    ${number("Validation", ["validation"], "share of episodes held out", false)}
    ${S.analysis.texts.length ? html`<div class="setting"><span>Image-text</span><ul>${S.analysis.texts.map((t) => html`<li key=${t.name} title=${t.path}>${t.name} × ${String(t.weight ?? "?")}</li>`)}</ul><small>added to the robot data; edit them in the text</small></div>` : ""}
  </div>`;
}
