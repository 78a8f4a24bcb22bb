// The YAML text: CodeMirror in a shadow root, whose style sheets a strict Content-Security-Policy allows.

import * as cm from "/vendor/codemirror.js";

const gesture = cm.Annotation.define(); // changes of one gesture (a drag) are one step of the history
const setCurrent = cm.StateEffect.define();

const currentLines = cm.StateField.define({
  create: () => cm.Decoration.none,
  update(value, transaction) {
    value = value.map(transaction.changes);
    for (const effect of transaction.effects) {
      if (!effect.is(setCurrent)) continue;
      const builder = new cm.RangeSetBuilder();
      if (effect.value) {
        const doc = transaction.state.doc;
        const last = doc.lineAt(Math.min(effect.value.to, doc.length)).number;
        for (let n = doc.lineAt(Math.min(effect.value.from, doc.length)).number; n <= last; n++)
          builder.add(doc.line(n).from, doc.line(n).from, cm.Decoration.line({ class: "cm-current-row" }));
      }
      value = builder.finish();
    }
    return value;
  },
  provide: (field) => cm.EditorView.decorations.from(field),
});

const theme = cm.EditorView.theme({
  "&": { height: "100%", fontSize: "13px", backgroundColor: "var(--surface)", color: "var(--text)" },
  "&.cm-focused": { outline: "none" },
  ".cm-scroller": { fontFamily: "var(--mono)", lineHeight: "1.55", overflow: "auto" },
  ".cm-content": { caretColor: "var(--accent)", padding: "6px 0" },
  ".cm-gutters": { backgroundColor: "var(--surface)", color: "var(--muted)", border: "none", paddingLeft: "2px" },
  ".cm-activeLine": { backgroundColor: "var(--hover)" },
  ".cm-activeLineGutter": { backgroundColor: "transparent", color: "var(--text)" },
  ".cm-current-row": { backgroundColor: "var(--accent-soft)" },
  ".cm-cursor": { borderLeftColor: "var(--accent)" },
  "&.cm-focused > .cm-scroller > .cm-selectionLayer .cm-selectionBackground, .cm-selectionBackground": {
    backgroundColor: "var(--selection) !important",
  },
  ".cm-tooltip, .cm-panels": { backgroundColor: "var(--raised)", color: "var(--text)", border: "1px solid var(--line)" },
  ".cm-panels": { border: "none", borderTop: "1px solid var(--line)" },
  ".cm-tooltip-autocomplete > ul > li[aria-selected]": { backgroundColor: "var(--accent)", color: "var(--on-accent)" },
  ".cm-textfield, .cm-button": { background: "var(--surface)", color: "var(--text)", border: "1px solid var(--line)", borderRadius: "5px" },
  ".cm-changedLine": { backgroundColor: "var(--accent-soft) !important" },
  ".cm-deletedChunk, .cm-merge-a .cm-changedLine": { backgroundColor: "var(--error-soft) !important" },
  ".cm-lintRange-warning": { backgroundImage: "none" }, // shown in the gutter
  ".cm-diagnostic": { fontFamily: "var(--sans)", fontSize: "12.5px" },
});

const colours = cm.HighlightStyle.define([
  { tag: [cm.tags.definition(cm.tags.propertyName), cm.tags.propertyName], color: "var(--code-key)" },
  { tag: cm.tags.comment, color: "var(--code-comment)", fontStyle: "italic" },
  { tag: [cm.tags.string, cm.tags.content], color: "var(--text)" },
  { tag: cm.tags.attributeValue, color: "var(--code-value)" },
  { tag: [cm.tags.labelName, cm.tags.typeName, cm.tags.keyword], color: "var(--code-anchor)" },
  { tag: cm.tags.punctuation, color: "var(--muted)" },
]);

const look = [theme, cm.syntaxHighlighting(colours), cm.yaml(), cm.EditorView.lineWrapping];

export class Text {
  /** Calls `on.change(byForm)` after the text changed, and `on.cursor(offset)` after the cursor moved. */
  constructor(host, text, names, on) {
    let last = { gesture: null, time: 0 };
    const root = host.attachShadow({ mode: "open" });
    this.view = new cm.EditorView({
      root,
      parent: root,
      state: cm.EditorState.create({
        doc: text,
        extensions: [
          cm.lineNumbers(),
          cm.lintGutter(),
          cm.highlightActiveLineGutter(),
          cm.highlightSpecialChars(),
          cm.drawSelection(),
          cm.highlightActiveLine(),
          cm.bracketMatching(),
          cm.search({ top: true }),
          currentLines,
          cm.history({
            newGroupDelay: 3.6e6,
            joinToEvent(transaction, adjacent) {
              const mine = transaction.annotation(gesture);
              if (mine !== undefined) return mine === last.gesture;
              const pause = transaction.annotation(cm.Transaction.time) - last.time;
              return last.gesture === undefined && adjacent && pause < 500;
            },
          }),
          cm.autocompletion({ override: [(context) => complete(context, names)] }),
          cm.keymap.of([...cm.completionKeymap, ...cm.defaultKeymap, ...cm.historyKeymap, ...cm.searchKeymap, ...cm.lintKeymap]),
          cm.EditorView.contentAttributes.of({ "aria-label": "Mixture as YAML", spellcheck: "false" }),
          ...look,
          cm.EditorView.updateListener.of((change) => {
            if (change.docChanged) {
              const transaction = change.transactions.findLast((t) => t.docChanged);
              last = { gesture: transaction.annotation(gesture), time: transaction.annotation(cm.Transaction.time) };
              on.change(transaction.annotation(gesture) !== undefined);
            }
            if (change.selectionSet && change.view.hasFocus) on.cursor(change.state.selection.main.head);
          }),
        ],
      }),
    });
  }

  get text() {
    return this.view.state.doc.toString();
  }

  get depth() {
    return { undo: cm.undoDepth(this.view.state), redo: cm.redoDepth(this.view.state) };
  }

  undo = () => cm.undo(this.view);
  redo = () => cm.redo(this.view);

  /** Start a gesture: its changes refer to the current text, and are one step of the history. */
  begin() {
    return { id: Symbol("gesture"), doc: this.view.state.doc, now: this.view.state.doc, done: null };
  }

  /** Replace the changes of a gesture; false if the text was changed otherwise in the meantime. */
  apply(held, changes) {
    if (!this.view.state.doc.eq(held.now)) return false;
    const target = cm.ChangeSet.of(changes, held.doc.length);
    const step = held.done ? held.done.invert(held.doc).compose(target) : target;
    if (!step.empty) this.view.dispatch({ changes: step, annotations: gesture.of(held.id) });
    held.done = target;
    held.now = this.view.state.doc;
    return true;
  }

  /** Replace the whole text as one step of the history, without its common prefix and suffix. */
  replace(text) {
    const old = this.text;
    let [start, end, newEnd] = [0, old.length, text.length];
    while (start < Math.min(end, newEnd) && old[start] === text[start]) start++;
    while (end > start && newEnd > start && old[end - 1] === text[newEnd - 1]) [end, newEnd] = [end - 1, newEnd - 1];
    this.view.dispatch({ changes: { from: start, to: end, insert: text.slice(start, newEnd) }, annotations: gesture.of(Symbol("replace")) });
  }

  /** Mark the lines of a row, and scroll to them if `scroll`. */
  mark(range, scroll) {
    const effects = [setCurrent.of(range)];
    if (range && scroll) effects.push(cm.EditorView.scrollIntoView(Math.min(range.from, this.view.state.doc.length), { y: "center" }));
    this.view.dispatch({ effects });
  }

  /** Put the cursor on a line, counted from 1. */
  goTo(line) {
    const doc = this.view.state.doc;
    const at = doc.line(Math.max(1, Math.min(line, doc.lines)));
    this.view.dispatch({ selection: { anchor: at.from }, effects: cm.EditorView.scrollIntoView(at.from, { y: "center" }) });
    this.view.focus();
  }

  /** Show findings at their lines: [{line, level, message}]. */
  diagnose(findings) {
    const doc = this.view.state.doc;
    const shown = findings.filter((f) => f.line).map((f) => {
      const line = doc.line(Math.min(f.line, doc.lines));
      const indent = /^\s*(-\s+)?/.exec(line.text)[0].length;
      return { from: line.from + Math.min(indent, line.length), to: line.to, severity: f.level, message: f.message };
    });
    shown.sort((a, b) => a.from - b.from);
    this.view.dispatch(cm.setDiagnostics(this.view.state, shown));
  }
}

function complete(context, names) {
  const found = context.matchBefore(/name:\s*["']?[\w.-]*$/);
  if (!found || (!context.explicit && !context.matchBefore(/name:\s*["']?[\w.-]+$/))) return null;
  const from = context.pos - /[\w.-]*$/.exec(found.text)[0].length;
  return { from, options: names().map((label) => ({ label, type: "text" })), validFor: /^[\w.-]*$/ };
}

/** Show two texts side by side, read-only. Returns a function that removes them. */
export function compare(host, left, right) {
  const root = host.shadowRoot ?? host.attachShadow({ mode: "open" });
  const extensions = [cm.lineNumbers(), cm.EditorState.readOnly.of(true), cm.EditorView.editable.of(false), ...look];
  const view = new cm.MergeView({
    root, parent: root, a: { doc: left, extensions }, b: { doc: right, extensions }, collapseUnchanged: { margin: 3, minSize: 6 },
  });
  return () => view.destroy();
}
