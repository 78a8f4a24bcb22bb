// One data set: frames, instructions and actions, with a second data set to compare.

import { html, useEffect, useState } from "/vendor/preact.js";
import * as api from "./api.js";
import * as format from "./format.js";
import { S, update } from "./store.js";

const cache = new Map();

/** JSON from the server, cached: the index does not change while the page is open. */
function useFetched(path, body) {
  const key = body && path + JSON.stringify(body);
  const [state, setState] = useState({});
  useEffect(() => {
    if (!key) return;
    let live = true;
    if (!cache.has(key)) cache.set(key, api.post(path, body));
    cache.get(key).then(
      (value) => live && setState({ key, value }),
      (error) => (cache.delete(key), live && setState({ key, error: error.message })),
    );
    return () => (live = false);
  }, [key]);
  return state.key === key ? state : {};
}

export function Dataset() {
  const row = S.analysis.rows.find((r) => r.id === S.current) ?? S.analysis.rows[0];
  if (!row) return html`<p class="empty">Select a row.</p>`;
  const f = S.facts[row.id];
  return html`<div class="dataset"><header><h3>${row.name}</h3>
      ${f && html`<dl class="facts"><div><dt>Robot</dt><dd>${f.robot}</dd></div><div><dt>Rate</dt><dd>${format.hz(f.hz)}</dd></div><div><dt>Actions</dt><dd>${f.action}</dd></div>
        <div><dt>Language</dt><dd>${f.language ?? "none"}</dd></div><div><dt>Licence</dt><dd>${f.licence ?? "unknown"}</dd></div>
        <div><dt>Sizes</dt><dd>${{ index: "from the index", published: "as published", unknown: "unknown" }[row.origin]}</dd></div></dl>
      <p class=${`reason ${f.verdict}`}><b>${{ pass: "Meets OpenVLA's criteria", fail: "Fails OpenVLA's criteria", conditional: "Meets OpenVLA's criteria conditionally", unknown: "Not assessed" }[f.verdict]}.</b> ${f.reason}</p>`}</header>
    ${f?.frames ? html`<${Seen} key=${row.id} id=${row.id} />` : html`<p class="empty">No frames or actions: this data set is not in the index.</p>`}
    ${f?.notes.length > 0 && html`<section><h4>Notes</h4><ul class="notes">${f.notes.map((note) => html`<li key=${note}>${note}</li>`)}</ul></section>`}
  </div>`;
}

function Seen({ id }) {
  const details = useFetched("/api/dataset", { dataset: id });
  const { low, high } = S.analysis.settings.bounds;
  const overlay = S.overlay && S.overlay !== id ? S.overlay : null;
  const shapes = useFetched("/api/histograms", { datasets: overlay ? [id, overlay] : [id], low, high });
  const others = Object.entries(S.facts).filter(([other, f]) => f.frames && other !== id);
  const d = details.value;
  return html`
    ${details.error && html`<p class="empty">${details.error}</p>`}
    ${d && html`<section><h4>Frames <small>from the middle of an episode, one column per episode</small></h4>
      <div class="frames">${d.examples[0].roles.map((role) => html`<div key=${role} class="camera"><span class="role">${role}</span>${d.examples.map((e) => html`<img key=${e.id} loading="lazy" alt=${`${role} camera: ${e.instruction}`} title=${`${e.instruction}\n${e.id}, ${e.steps} steps`} src=${`/api/frame/${encodeURIComponent(id)}/${role}/${e.file}/${e.row}/${Math.floor(e.steps / 2)}?h=144`} />`)}</div>`)}</div></section>`}
    <section class="actions"><h4>Actions <label class="overlay">compare with <select value=${overlay ?? ""} onChange=${(e) => update({ overlay: e.target.value || null })}><option value="">none</option>${others.map(([other, f]) => html`<option key=${other} value=${other} selected=${other === overlay}>${f.name}</option>`)}</select></label></h4>
      ${shapes.error && html`<p class="empty">${shapes.error}</p>`}
      ${shapes.value ? html`<div class="histograms">${shapes.value.dimensions.map((d) => html`<${Histogram} key=${d.axis} d=${d} />`)}</div>
        <p class="muted small">Dashed lines: the ${low} and ${high} quantiles, which become −1 and +1; values outside them are clipped. Heights are square roots of shares.</p>
        <ul class="legend">${Object.entries(shapes.value.steps).map(([name, n], k) => html`<li key=${name}><i class=${`k${k}`}></i>${name}: ${format.exact(n)}${n < shapes.value.all[name] ? ` of ${format.exact(shapes.value.all[name])}` : ""} steps</li>`)}</ul>` : !shapes.error && html`<p class="empty">Computing histograms…</p>`}</section>
    ${d && html`<section><h4>Instructions <small>${d.distinct} distinct${d.files < d.allFiles ? ` in ${d.files} of ${d.allFiles} files` : ""}</small></h4>
      <ul class="instructions">${d.instructions.map((i) => html`<li key=${i.text}><span>${i.text || "(empty)"}</span><b>${i.episodes}</b></li>`)}</ul></section>`}`;
}

const [W, H] = [132, 54];

function Histogram({ d }) {
  const peak = Math.max(...d.series.flatMap((s) => s.counts));
  const x = (value) => Math.max(0.5, Math.min(W - 0.5, ((value - d.left) / (d.right - d.left)) * W));
  const number = (v) => (Math.abs(v) >= 100 ? v.toFixed(0) : Number(v.toPrecision(2)).toString());
  const text = d.series.map((s) => `${s.dataset}: ${number(s.low)} to ${number(s.high)}${s.clipped === null ? "" : `, ${(100 * s.clipped).toFixed(1)} % clipped`}`).join("; ");
  return html`<figure><svg viewBox=${`0 0 ${W} ${H}`} preserveAspectRatio="none" role="img" aria-label=${`${d.axis}. ${text}`}>
      ${d.series.map((s, k) => html`<path key=${s.dataset} class=${`shape k${k}`} d=${outline(s.counts, peak)} />`)}
      ${d.series.map((s, k) => [s.low, s.high].map((q, i) => html`<line key=${`${s.dataset}${i}`} class=${`bound k${k}`} x1=${x(q)} x2=${x(q)} y1="0" y2=${H} />`))}
    </svg><figcaption><b>${d.axis}</b>${d.series.map((s, k) => html`<span key=${s.dataset} class=${`k${k}`} title=${s.dataset}>${number(s.low)} … ${number(s.high)}${s.clipped === null ? "" : ` · ${(100 * s.clipped).toFixed(1)} %`}</span>`)}</figcaption></figure>`;
}

function outline(counts, peak) {
  const step = W / counts.length;
  const y = (c) => (H - 1 - Math.sqrt(c / peak) * (H - 4)).toFixed(2); // square root, so that the tails are visible
  return `M0 ${H}${counts.map((c, i) => `L${(i * step).toFixed(2)} ${y(c)}L${((i + 1) * step).toFixed(2)} ${y(c)}`).join("")}L${W} ${H}Z`;
}
