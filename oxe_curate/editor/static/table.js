// The table: one data set per row, the same quantity in four units.

import { html, useEffect, useMemo, useRef, useState } from "/vendor/preact.js";
import * as act from "./actions.js";
import { Icon, NumberField } from "./controls.js";
import * as format from "./format.js";
import { S, fact, ghost, shownRows, sortBy, update } from "./store.js";

const [LOW, HIGH] = [-3, 2]; // the slider: 0.001 to 100
const THUMB = 14; // pixels, as in app.css
const clamp = (x) => Math.max(LOW, Math.min(HIGH, x));
const place = (weight) => (clamp(Math.log10(weight)) - LOW) / (HIGH - LOW);

const COLUMNS = [
  ["name", "Data set", "Sort by name"],
  ["episodes", "Episodes", "Episodes that filter kept, or as published"],
  ["steps", "Steps", "Steps that filter kept, or as published"],
  ["hours", "Hours", "Steps at the data set's control rate"],
  ["weight", "Weight", "Expected copies of each step in one pass. The slider is logarithmic, 0.001 to 100"],
  ["share", "Share %", "Share of the samples: weight × steps, divided by the sum"],
  ["epochs", "Epochs", "How often each step is seen in training"],
  ["passHours", "Seen h", "Hours of data in one pass, including copies"],
];

export function Table() {
  const rows = shownRows();
  const { analysis, sort, selected, locked, current, reference } = S;
  const scale = barScale(Math.max(0, ...analysis.rows.map((row) => row.share ?? 0)));
  const all = rows.length > 0 && rows.every((row) => selected.has(row.id));
  const some = rows.some((row) => selected.has(row.id));
  const box = useRef();
  useEffect(() => {
    if (box.current) box.current.indeterminate = some && !all;
  });
  const toggleAll = () => {
    const next = new Set(selected);
    for (const row of rows) all ? next.delete(row.id) : next.add(row.id);
    update({ selected: next });
  };
  return html`<table class="rows">
    <caption class="hidden">Data sets of the mixture</caption>
    <colgroup><col class="c-check" /><col class="c-thumb" /><col class="c-name" /><col class="c-num" /><col class="c-num" /><col class="c-num c-hours" />
      <col class="c-slider" /><col class="c-weight" /><col class="c-share" /><col class="c-field" /><col class="c-field" /><col class="c-tools" /></colgroup>
    <thead><tr>
      <th scope="col"><input ref=${box} type="checkbox" aria-label="Select all rows shown" checked=${all} onChange=${toggleAll} /></th>
      <td></td>
      ${COLUMNS.map(([key, label, title]) => html`<th key=${key} scope="col" class=${key} colspan=${key === "weight" ? 2 : undefined}
        aria-sort=${sort.key === key ? (sort.down ? "descending" : "ascending") : "none"}>
        <button class="plain" title=${`${title}. Click to sort.`} onClick=${() => sortBy(key)}>${arrow(key, "before")}${label}${arrow(key, "after")}</button></th>`)}
      <td></td>
    </tr></thead>
    <tbody>
      ${rows.map((row) => html`<${Row} key=${`${row.id}#${row.name}`} row=${row} f=${fact(row)} ghost=${ghost(row)} scale=${scale}
        selected=${selected.has(row.id)} locked=${locked.has(row.id)} current=${current === row.id} reference=${reference} />`)}
    </tbody>
  </table>
  ${rows.length === 0 && html`<p class="empty">${analysis.rows.length ? "No data set matches the filter." : "The mixture is empty. Add a data set above, or in the text."}</p>`}`;
}

/** The direction of a sorted column, on the side where the arrow does not move the label. */
const arrow = (key, side) => S.sort.key === key && (key === "name" || key === "weight") === (side === "after") && html`<span class="arrow" aria-hidden="true">${S.sort.down ? "↓" : "↑"}</span>`;

/** The share at full width, in steps of 1, 2, 5, so that not all bars move with one slider. */
function barScale(largest) {
  for (const step of [0.01, 0.02, 0.05, 0.1, 0.2, 0.5]) if (largest <= step) return step;
  return 1;
}

function Row(props) {
  const { row, f, ghost: published, scale, selected, locked, current, reference } = props;
  const [drag, setDrag] = useState(null); // position of the slider while it is dragged
  const held = useRef(null);
  const pointer = useRef(false);
  return useMemo(() => {
    const known = row.steps != null && row.weight != null;
    const commit = (quantity, factor = 1) => (value) => act.setQuantity(row, quantity, value * factor);
    const slide = (event) => {
      let value = Number(event.target.value);
      held.current ??= act.beginGesture();
      // a pointer snaps to the published weight; a key's step is smaller than that and must not
      if (pointer.current && published && Math.abs(value - Math.log10(published)) < 0.02) value = Math.log10(published);
      const target = published && value === Math.log10(published) ? published : Number((10 ** value).toPrecision(3));
      setDrag(value);
      act.setQuantity(row, "weight", target, held.current);
    };
    const release = () => {
      held.current = null;
      pointer.current = false;
      setTimeout(() => setDrag(null), 120); // the last response may be pending
    };
    const choose = () => act.focusRow(row);
    const toggle = (name) => () => {
      const next = new Set(S[name]);
      next.has(row.id) ? next.delete(row.id) : next.add(row.id);
      update({ [name]: next });
    };
    const differs = published != null && row.weight !== published;
    const sliderValue = drag ?? clamp(Math.log10(row.weight ?? 1));
    const published_title = published == null ? "" : `${S.references[reference]?.title}: ${format.weight(published)}`;
    return html`<tr id=${`row-${row.row}`} class=${[current && "current", selected && "selected", row.problem && "problem"].filter(Boolean).join(" ")} onFocusIn=${() => S.current !== row.id && act.focusRow(row)}>
      <td><input type="checkbox" aria-label=${`Select ${row.name}`} checked=${selected} onChange=${toggle("selected")} /></td>
      <td class="thumb" onClick=${choose}><${Thumb} row=${row} f=${f} /></td>
      <th scope="row" class="name"><button class="plain" title=${row.problem ?? f?.reason ?? ""} onClick=${() => { choose(); S.panel === "dataset" || update({ panel: "dataset" }); }}>
          <span class="title">${row.name}</span>
          <span class="sub">${row.problem ? html`<span class="bad">${row.problem}</span>` : html`${f && f.verdict !== "pass" && html`<span class=${`verdict ${f.verdict}`}>${f.verdict === "fail" ? "fails" : f.verdict}</span>`}${robot(f)} · ${cameras(f)} · ${format.hz(f?.hz)}`}</span>
        </button></th>
      <td class="num" title=${format.exact(row.episodes)}>${format.count(row.episodes)}</td>
      <td class=${`num ${row.origin}`} title=${`${format.exact(row.steps)} steps${row.origin === "published" ? " (published; not in the index)" : ""}`}>${format.count(row.steps)}</td>
      <td class="num hours">${format.hours(row.hours)}</td>
      <td class="slider"><div class="track">
        <input type="range" min=${LOW} max=${HIGH} step="0.01" aria-label=${`Weight of ${row.name}, logarithmic`} aria-valuetext=${format.weight(row.weight)}
          value=${sliderValue} disabled=${locked && S.keepTotal} onPointerDown=${() => (pointer.current = true)} onInput=${slide} onChange=${release} onBlur=${release} />
        ${published != null && html`<button class=${`ghost${differs ? " differs" : ""}`} tabindex=${differs ? 0 : -1} style=${{ left: `calc(${place(published)} * (100% - ${THUMB}px) + ${THUMB / 2}px)` }}
          title=${`${published_title}${differs ? ". Click to restore it." : ""}`} aria-label=${`Reset ${row.name} to ${published_title}`} onClick=${() => act.setQuantity(row, "weight", published)}></button>`}
      </div></td>
      <td class="exact"><${NumberField} kind="boxed" label=${`Weight of ${row.name}`} shown=${format.weight(row.weight)} exact=${row.weight == null ? "" : String(row.weight)} disabled=${locked && S.keepTotal} onCommit=${commit("weight")} /></td>
      <td class="share"><div class="bar" aria-hidden="true"><span style=${{ width: `${Math.min(100, (100 * (row.share ?? 0)) / scale)}%` }}></span></div>
        <${NumberField} label=${`Share of ${row.name} in percent`} shown=${format.percent(row.share)} exact=${row.share == null ? "" : String(Number((100 * row.share).toPrecision(6)))} disabled=${!known} onCommit=${commit("share", 0.01)} /></td>
      <td><${NumberField} label=${`Epochs of ${row.name}`} shown=${format.epochs(row.epochs)} exact=${row.epochs == null ? "" : String(Number(row.epochs.toPrecision(6)))} disabled=${!known} onCommit=${commit("epochs")} /></td>
      <td><${NumberField} label=${`Hours of ${row.name} in one pass`} shown=${format.hours(row.passHours)} exact=${row.passHours == null ? "" : String(Number(row.passHours.toPrecision(6)))} disabled=${!known || !row.hz} onCommit=${commit("hours")} /></td>
      <td class="tools"><button class="tool" aria-pressed=${locked} aria-label=${`Lock ${row.name}`} title=${locked ? "Locked: keeps its weight while others are rebalanced" : "Lock its weight while others are rebalanced"} onClick=${toggle("locked")}><${Icon} name=${locked ? "lock" : "unlock"} /></button><button class="tool" aria-label=${`Remove ${row.name}`} title="Remove from the mixture" onClick=${() => act.removeRows(new Set([row.id]))}><${Icon} name="remove" /></button></td>
    </tr>`;
  }, [JSON.stringify(row), f, published, scale, selected, locked, current, drag, reference, S.keepTotal]);
}

export const robot = (f) => f?.robot ?? "unknown robot";
const short = { primary: "front", secondary: "side", extra: "extra", wrist: "wrist", egocentric: "ego" };
const cameras = (f) => (f?.cameras.length ? f.cameras.map((role) => short[role] ?? role).join(" + ") : "no camera");

function Thumb({ row, f }) {
  if (f?.frames) return html`<img loading="lazy" decoding="async" width="52" height="39" alt="" src=${`/api/frame/${encodeURIComponent(row.id)}?h=72`} />`;
  const letters = (f?.robot ?? "?").split(/\s+/).map((word) => word[0]).join("").slice(0, 2).toUpperCase();
  return html`<span class="stand-in" title="No frames: this data set is not in the index">${letters}</span>`;
}
