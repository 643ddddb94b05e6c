// Builds the page from src, byte for byte the same each time: node build.mjs [FOLDER]
import { copyFileSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { build } from "esbuild";

const [outdir = "static"] = process.argv.slice(2);
rmSync(outdir, { recursive: true, force: true });
mkdirSync(outdir);
const { metafile } = await build({
  entryPoints: { console: "src/main.tsx" },
  outdir,
  bundle: true,
  minify: true,
  format: "esm",
  target: "es2022",
  jsx: "automatic",
  jsxImportSource: "preact",
  legalComments: "none",
  metafile: true,
});
copyFileSync("src/index.html", `${outdir}/index.html`);

// The licences of the packages that the page contains.
const names = new Set(Object.keys(metafile.inputs).map((path) => path.match(/^node_modules\/((?:@[^/]+\/)?[^/]+)/)?.[1]).filter(Boolean));
const licences = [...names].sort().map((name) => {
  const { version, license } = JSON.parse(readFileSync(`node_modules/${name}/package.json`, "utf-8"));
  return `${name} ${version} (${license})\n\n${readFileSync(`node_modules/${name}/LICENSE`, "utf-8").trim()}\n`;
});
writeFileSync(`${outdir}/licences.txt`, licences.join(`\n${"-".repeat(80)}\n\n`));
