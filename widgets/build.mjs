// Bundles every src/<name>/index.ts into one minified ES module (and one stylesheet) that Python ships.
// The output is committed and depends on the sources alone, so CI can rebuild and compare bytes.
import { existsSync, readdirSync } from "node:fs";
import { fileURLToPath } from "node:url";
import * as esbuild from "esbuild";

const here = (path) => fileURLToPath(new URL(path, import.meta.url));
const names = readdirSync(here("src")).filter((name) => existsSync(here(`src/${name}/index.ts`)));

const options = {
  entryPoints: Object.fromEntries(names.map((name) => [name, here(`src/${name}/index.ts`)])),
  outdir: here("../toolkit/activarium/widgets/static"),
  absWorkingDir: here("."),
  bundle: true,
  minify: true,
  format: "esm",
  target: "es2022",
  charset: "utf8",
  legalComments: "none",
  logLevel: "info",
};

if (process.argv.includes("--watch")) await (await esbuild.context(options)).watch();
else await esbuild.build(options);
