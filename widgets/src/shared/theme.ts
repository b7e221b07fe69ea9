/** Light or dark, and the host's own colours, read where the widget stands. */

import type { Listeners } from "./model.ts";

export interface Theme {
  dark: boolean;
  ink: string;
  muted: string;
  line: string;
  ground: string;
  font: string;
}

/** Colours of the widget's root element, whose stylesheet maps the host's variables. */
export function themeOf(root: HTMLElement): Theme {
  const style = getComputedStyle(root);
  const read = (name: string) => style.getPropertyValue(name).trim();
  return {
    dark: isDark(root),
    ink: style.color,
    muted: read("--act-muted"),
    line: read("--act-line"),
    ground: read("--act-ground"),
    font: style.fontFamily,
  };
}

/** JupyterLab states it; elsewhere the text colour tells: light text stands on a dark ground. */
function isDark(root: HTMLElement): boolean {
  const said = document.body.dataset.jpThemeLight;
  if (said) return said === "false";
  const [r, g, b] = (getComputedStyle(root).color.match(/[\d.]+/g) ?? ["0", "0", "0"]).map(Number);
  return r + g + b > 382;
}

/** Call back when the host changes between light and dark. */
export function onTheme(listeners: Listeners, changed: () => void): void {
  const watcher = new MutationObserver(changed);
  watcher.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-name", "data-jp-theme-light"] });
  const system = matchMedia("(prefers-color-scheme: dark)");
  system.addEventListener("change", changed);
  listeners.finally(() => {
    watcher.disconnect();
    system.removeEventListener("change", changed);
  });
}
