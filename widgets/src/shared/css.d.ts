/** Stylesheets are bundled by esbuild; an import has no value. */
declare module "*.css";
