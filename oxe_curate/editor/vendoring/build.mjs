// Bundles codemirror.js and preact.js into ../static/vendor, with the licences of all that went in.
import { build } from "esbuild";
import { copyFileSync, existsSync, readFileSync, readdirSync, writeFileSync } from "node:fs";

const out = "../static/vendor";
const result = await build({
  entryPoints: ["codemirror.js", "preact.js"], outdir: out, bundle: true, format: "esm", minify: true, metafile: true,
  target: "es2022", legalComments: "none", charset: "utf8",
});
const packages = new Set(Object.keys(result.metafile.inputs).map((p) => /node_modules\/((?:@[^/]+\/)?[^/]+)/.exec(p)?.[1]));
packages.delete(undefined);
let text = "The files of this folder are bundled from these packages by oxe_curate/editor/vendoring.\n";
for (const name of [...packages].sort()) {
  const folder = `node_modules/${name}`;
  const { version, license } = JSON.parse(readFileSync(`${folder}/package.json`, "utf8"));
  const file = readdirSync(folder).find((f) => /^licen[cs]e/i.test(f));
  text += `\n${"=".repeat(78)}\n${name} ${version}: ${license}\n${"=".repeat(78)}\n\n${file ? readFileSync(`${folder}/${file}`, "utf8").trim() : ""}\n`;
}
writeFileSync(`${out}/LICENSES.txt`, text);
const tests = "../../../tests/editor/vendor"; // absent in an installed copy
if (existsSync(tests)) {
  copyFileSync("node_modules/axe-core/axe.min.js", `${tests}/axe.min.js`);
  copyFileSync("node_modules/axe-core/LICENSE", `${tests}/axe.LICENSE.txt`);
}
