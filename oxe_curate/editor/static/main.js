// The page: top bar, summary, table, text and tabs.

import { html, render, useEffect, useLayoutEffect, useRef, useState } from "/vendor/preact.js";
import * as act from "./actions.js";
import * as api from "./api.js";
import { colour, Dialog, Icon, NumberField } from "./controls.js";
import * as format from "./format.js";
import { GROUPS, grouped, Panels, ReferenceSelect } from "./panels.js";
import { S, notify, remember, subscribe, update } from "./store.js";
import { Table } from "./table.js";
import { compare, Text } from "./text.js";

function App() {
  const [, redraw] = useState(0);
  useLayoutEffect(() => subscribe(() => redraw((n) => n + 1)), []);
  useEffect(() => {
    document.title = `${S.dirty ? "● " : ""}${S.file.name}`;
  }, [S.dirty]);
  const locked = S.error !== null;
  return html`
    <${TopBar} />
    ${S.serverGone && html`<${ServerGone} />`}
    ${S.changedOnDisk && !S.conflict && html`<div class="banner warning" role="alert"><${Icon} name="warning" /><span><b>${S.file.name}</b> changed on disk since it was opened here.</span><button onClick=${act.fetchConflict}>Compare…</button></div>`}
    ${S.analysis && html`<${Summary} />`}
    <main>
      <section class="form" aria-label="Data sets">
        ${locked && html`<div class="banner error" role="alert"><${Icon} name="error" /><span>${S.error.line ? html`<b>Line ${S.error.line}:</b> ` : ""}${S.error.message.replace(/[.]?$/, ".")}${S.analysis ? " The form is locked and shows the last valid text." : ""}</span>${S.error.line && html`<button onClick=${() => act.goTo(S.error.line)}>Go to line ${S.error.line}</button>`}</div>`}
        ${S.analysis && html`<div class=${`lockable${locked ? " locked" : ""}`} inert=${locked}><${Toolbar} /><div class="scroll" tabindex="-1"><${Table} /></div></div>`}
      </section>
      <${Splitter} name="--right" axis="x" label="Width of the text" />
      <section class="side" aria-label="Text and details">
        <${TextPane} />
        <${Splitter} name="--lower" axis="y" label="Height of the details" />
        <div class=${`details${locked ? " locked" : ""}`} inert=${locked}>${S.analysis && html`<${Panels} />`}</div>
      </section>
    </main>
    ${S.conflict && html`<${Conflict} />`}
    ${S.draft && html`<${Draft} />`}
    <div class="notices" role="status" aria-live="polite">${S.notice && html`<div class=${`notice ${S.notice.kind}`}>${S.notice.text}</div>`}</div>`;
}

function TopBar() {
  const { file, dirty } = S;
  return html`<header class="top">
    <img src="/icon.svg" width="24" height="24" alt="" />
    <h1 title=${file.path + (file.linkTo ? ` → ${file.linkTo}` : "")}>${file.name}<span class="state">${file.new ? "not saved yet" : dirty ? "edited" : "saved"}</span></h1>
    <button class="primary" disabled=${(!dirty && !file.new) || S.busy} title="Save (Ctrl+S)" onClick=${() => act.save()}>Save</button>
    <button disabled=${!S.undoable} title="Undo (Ctrl+Z); text and form share one history" aria-label="Undo" onClick=${act.undo}><${Icon} name="undo" /></button>
    <button disabled=${!S.redoable} title="Redo (Ctrl+Shift+Z)" aria-label="Redo" onClick=${act.redo}><${Icon} name="redo" /></button>
    <span class="spring"></span>
    <label for="reference" class="muted">Published weights</label><${ReferenceSelect} id="reference" />
  </header>`;
}

function Summary() {
  const { totals } = S.analysis;
  const by = S.stackBy;
  const samples = S.samples ?? totals.samples;
  const errors = S.findings.filter((f) => f.level === "error").length;
  const warnings = S.findings.length - errors;
  const groups = grouped(by);
  const unknown = totals.unknownSteps.length;
  return html`<section class="summary" aria-label="Summary of the mixture">
    <div class="figures"><dl>
      <div><dt>Data sets</dt><dd>${totals.datasets}</dd></div>
      <div title=${`${format.exact(totals.samples)} samples${unknown ? `; unknown size: ${totals.unknownSteps.join(", ")}` : ""}`}><dt>One pass</dt><dd>${format.count(totals.samples)}<small> samples${unknown ? ` + ${unknown} of unknown size` : ""}</small></dd></div>
      <div><dt>Data seen</dt><dd>${format.hours(totals.hours)}<small> h</small></dd></div>
      <div title=${totals.unknownBytes.length ? `Without ${totals.unknownBytes.join(", ")}` : "Size of the images that tokenize writes, or of the rows that refer to them"}><dt>On disk</dt><dd>${format.bytes(totals.bytes)}${totals.unknownBytes.length ? html`<small> +</small>` : ""}</dd></div>
      <div class="training"><dt>Training</dt><dd>
        <${NumberField} kind="boxed samples" label="Training samples" placeholder="one pass" empty=${true} shown=${S.samples === null ? "" : format.count(S.samples)} exact=${S.samples === null ? "" : String(S.samples)} title="Number of training samples. Empty: one pass of the mixture, so that epochs equal the weights."
          onCommit=${(v) => { remember({ samples: v && v >= 1 ? Math.round(v) : null }); act.analyse().then(act.check); }} /><small>samples at</small>
        <${NumberField} kind="boxed speed" label="Samples per second" shown=${String(S.speed)} title="OpenVLA's own training step runs at 28 samples per second on one H200 (LoRA, rank 32)" onCommit=${(v) => v > 0 && remember({ speed: v })} /><small>/s =</small> ${format.duration(samples / S.speed)}</dd></div></dl>
      <div class="spring"></div>
      <label class="muted bar-by">Bar by <select value=${by} onChange=${(e) => remember({ stackBy: e.target.value })}>${["robot", "dataset", "rate"].map((key) => html`<option key=${key} value=${key} selected=${key === by}>${GROUPS[key][0].toLowerCase()}</option>`)}</select></label>
      <button class=${`pill ${errors ? "bad" : warnings ? "warn" : "good"}`} onClick=${() => remember({ panel: "checks" })}>${errors ? `${errors} error${errors > 1 ? "s" : ""}` : ""}${errors && warnings ? ", " : ""}${warnings ? `${warnings} warning${warnings > 1 ? "s" : ""}` : ""}${!errors && !warnings ? "Checks passed" : ""}</button>
    </div>
    <div class="stack" role="img" aria-label=${`Share by ${GROUPS[by][0].toLowerCase()}: ${groups.slice(0, 5).map(([n, s]) => `${n} ${format.percent(s)} %`).join(", ")}`}>
      ${groups.map(([name, share], i) => html`<i key=${name} title=${`${name}: ${format.percent(share)} %`} style=${{ width: `${100 * share}%`, background: colour(i) }}>${share > 0.07 ? name : ""}</i>`)}
    </div>
  </section>`;
}

function Toolbar() {
  const { selected, analysis } = S;
  const [factor, setFactor] = useState("2");
  const n = selected.size;
  const times = (f) => () => act.scaleSelected(f);
  const present = new Set(analysis.rows.map((row) => row.id));
  const missing = Object.entries(S.facts).filter(([id]) => !present.has(id));
  const add = (event) => {
    const name = event.target.value.trim();
    const found = missing.find(([id, f]) => f.name === name || id === name || f.aliases.includes(name));
    if (!found && name && event.type === "change") notify(present.has(name) ? `${name} is already in the mixture.` : `Unknown data set ${name}.`, "error");
    if (!found) return;
    event.target.value = "";
    act.addDataset(found[0]);
  };
  return html`<div class=${`toolbar main${n ? " selecting" : ""}`} role="toolbar" aria-label="Rows">
    <input id="filter" type="search" placeholder="Filter ( / )" aria-label="Filter the rows" value=${S.filter} onInput=${(e) => update({ filter: e.target.value })} />
    <input type="text" class="boxed add" list="known" placeholder="Add a data set…" aria-label="Add a data set" autocomplete="off" onChange=${add} onInput=${(e) => (e.inputType ?? "insertReplacementText") === "insertReplacementText" && add(e)} />
    <datalist id="known">${missing.map(([id, f]) => html`<option key=${id} value=${f.name}>${f.robot}${f.verdict === "pass" ? "" : ` (${f.verdict})`}</option>`)}</datalist>
    <label class="check" title="Keep the size of one pass: when a row is edited, the unlocked rows are scaled in proportion"><input type="checkbox" checked=${S.keepTotal} onChange=${(e) => update({ keepTotal: e.target.checked })} />Rebalance the rest</label>
    <span class="spring"></span>
    ${n > 0 && html`<div class="selection" role="group" aria-label="Change the selected rows"><b>${n} selected</b>
      <button onClick=${times(0.5)}>× ½</button><button onClick=${times(2)}>× 2</button>
      <span class="joined"><input type="text" class="boxed factor" aria-label="Factor for the selected weights" value=${factor} onInput=${(e) => setFactor(e.target.value)} onKeyDown=${(e) => e.key === "Enter" && format.parse(factor) > 0 && act.scaleSelected(format.parse(factor))} /><button disabled=${!(format.parse(factor) > 0)} onClick=${() => act.scaleSelected(format.parse(factor))}>Multiply</button></span>
      <button onClick=${() => act.removeRows(new Set(selected))}>Remove</button>
      <button class="plain" onClick=${() => update({ selected: new Set() })}>Clear</button></div>`}
  </div>`;
}

function TextPane() {
  const host = useRef();
  useLayoutEffect(() => {
    const names = () => Object.values(S.facts).flatMap((f) => [f.name]).sort();
    act.setText(new Text(host.current, S.file.text, names, { change: act.textChanged, cursor: act.cursorAt }));
    act.analyse().then(act.check);
    act.findDraft();
  }, []);
  return html`<div class="text" ref=${host}></div>`;
}

/** A handle between two areas: dragged, or moved with the arrow keys. */
function Splitter({ name, axis, label }) {
  const root = document.documentElement.style;
  const [size, setSize] = useState(() => Number(localStorage.getItem(`oxe-curate:${name}`)) || null);
  const set = (pixels) => {
    const most = (axis === "x" ? innerWidth : innerHeight) - 260;
    const value = Math.round(Math.max(axis === "x" ? 300 : 120, Math.min(most, pixels)));
    root.setProperty(name, `${value}px`);
    localStorage.setItem(`oxe-curate:${name}`, String(value));
    setSize(value);
  };
  useLayoutEffect(() => {
    if (size) set(size);
  }, []);
  const other = useRef();
  const measure = () => (axis === "x" ? other.current.nextElementSibling.offsetWidth : other.current.nextElementSibling.offsetHeight);
  const drag = (event) => {
    event.preventDefault();
    event.target.setPointerCapture(event.pointerId);
    const [start, before] = [axis === "x" ? event.clientX : event.clientY, measure()];
    event.target.onpointermove = (e) => set(before + start - (axis === "x" ? e.clientX : e.clientY));
    event.target.onpointerup = event.target.onpointercancel = () => (event.target.onpointermove = null);
  };
  const keys = (event) => {
    const by = { ArrowLeft: 24, ArrowUp: 24, ArrowRight: -24, ArrowDown: -24 }[event.key];
    if (!by || (axis === "x") !== event.key.match(/Left|Right/) instanceof Array) return;
    event.preventDefault();
    set(measure() + by);
  };
  return html`<div ref=${other} class=${`splitter ${axis}`} role="separator" aria-orientation=${axis === "x" ? "vertical" : "horizontal"} aria-label=${label} aria-valuenow=${size ?? 400} aria-valuemin="120" aria-valuemax="2000" tabindex="0" onPointerDown=${drag} onKeyDown=${keys}></div>`;
}

function ServerGone() {
  const copy = () => navigator.clipboard.writeText(act.currentText());
  const download = () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([act.currentText()], { type: "application/yaml" }));
    link.download = S.file.name;
    link.click();
    URL.revokeObjectURL(link.href);
  };
  return html`<div class="banner error" role="alert"><${Icon} name="error" /><span>${S.serverGone === "session" ? "The editor was restarted; this tab belongs to the previous session." : "The editor's server does not respond."} Your text is saved in this browser: run <code>oxe-curate edit</code> again and open its address.</span><button onClick=${copy}>Copy the text</button><button onClick=${download}>Download</button></div>`;
}

function Conflict() {
  const host = useRef();
  useEffect(() => compare(host.current, S.conflict.text, act.currentText()), [S.conflict]);
  const close = () => update({ conflict: null });
  return html`<${Dialog} wide title=${`${S.file.name} changed on disk`} onClose=${close}>
    <p>Left: the file on disk. Right: your text.</p>
    <div class="merge" ref=${host}></div>
    <div class="buttons"><button onClick=${close}>Keep editing</button><span class="spring"></span>
      <button onClick=${() => act.load(S.conflict.text, S.conflict.base)}>Load the file</button>
      <button class="primary" onClick=${() => act.save(true)}>Overwrite the file</button></div>
  <//>`;
}

function Draft() {
  const host = useRef();
  useEffect(() => compare(host.current, S.file.text, S.draft.text), []);
  const when = new Date(S.draft.time).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short" });
  return html`<${Dialog} wide title="Unsaved draft found" onClose=${() => update({ draft: null })}>
    <p>This browser has unsaved text from ${when}. Left: the file. Right: the draft.</p>
    <div class="merge" ref=${host}></div>
    <div class="buttons"><button onClick=${act.dropDraft}>Discard the draft</button><span class="spring"></span><button class="primary" onClick=${act.restoreDraft}>Restore the draft</button></div>
  <//>`;
}

addEventListener("keydown", (event) => {
  const key = event.key.toLowerCase();
  const command = event.ctrlKey || event.metaKey;
  if (command && key === "s") {
    event.preventDefault();
    const field = document.activeElement;
    if (field?.matches(".number")) [field.blur(), field.focus()]; // commits the input
    act.settled().then(() => (S.dirty || S.file?.new) && act.save());
  } else if (command && (key === "z" || key === "y") && !(event.composedPath()[0].closest?.(".cm-editor, [type=search]"))) {
    event.preventDefault();
    key === "y" || event.shiftKey ? act.redo() : act.undo();
  } else if (key === "/" && !command && !/^(input|textarea|select)$/i.test(event.target.tagName) && !event.composedPath()[0].closest?.(".cm-editor")) {
    event.preventDefault();
    document.getElementById("filter")?.focus();
  }
});
addEventListener("beforeunload", (event) => {
  if (!S.dirty) return;
  act.keepDraft();
  event.preventDefault();
});

const app = document.getElementById("app");
try {
  const [file, catalogue] = await Promise.all([api.get("/api/file"), api.get("/api/catalogue")]);
  update({ file, facts: catalogue.datasets, references: catalogue.references });
  if (!(S.reference in S.references)) S.reference = Object.keys(S.references)[0];
  app.replaceChildren();
  render(html`<${App} />`, app);
  setInterval(act.watch, 2500);
  addEventListener("focus", act.watch);
} catch (error) {
  app.textContent = `Cannot open the mixture: ${error.message}`;
}
