/** Where a feature fires: tokens on their colours, or pictures under a heat-map, grouped by band. */

import { cover, opaque } from "../image_overlay/draw.ts";
import { drawPanel } from "../image_overlay/panel.ts";
import { css, type Range, rampFor } from "../shared/colours.ts";
import { choice, make, sized, slider } from "../shared/dom.ts";
import { hearKeys } from "../shared/keyboard.ts";
import { legend } from "../shared/legend.ts";
import { extentOf } from "../shared/maps.ts";
import type { Said } from "../shared/readout.ts";
import { visible } from "../shared/text.ts";
import { paints } from "../token_strip/draw.ts";
import { roving } from "./roving.ts";
import { bandsOf, brief, type Context, peakOf, precisely } from "./sheet.ts";

export interface Look {
  opacity: number;
  /** Small values let the picture through, all patches cover it alike, or the patches stand alone. */
  cover: "by size" | "evenly" | "grid alone";
}
export const COVERS: Look["cover"][] = ["by size", "evenly", "grid alone"];

const PANEL = 150;

/** All contexts; `look` is changed in place by the controls, so that it stays from page to page. */
export function contextsOf(
  contexts: readonly Context[],
  unit: string,
  look: Look,
  dark: boolean,
  say: (said: Said) => void,
): HTMLElement {
  const range = rangeOf(contexts);
  const ramp = rampFor(range, dark, true);
  const box = make("div", { class: "act-contexts", role: "group", "aria-label": "contexts" });
  const pictures = contexts.some(({ image }) => image);
  const draws: (() => void)[] = [];
  const drawAll = () => {
    for (const draw of draws) draw();
  };
  const bar = legend({ ramp: pictures ? rampFor(range, false, true) : ramp, range, data: range }, unit);
  const head = make("div", { class: "act-controls" }, make("b", {}, "contexts"), bar);
  if (pictures) head.append(...lookControls(look, drawAll));
  box.append(head);
  for (const [band, members] of bandsOf(contexts)) {
    const items = members.map((context) =>
      context.image ? picture(context, range, look, draws, say) : text(context, range, ramp, say),
    );
    const words = `${band || "contexts"} · ${members.length}`;
    box.append(
      make("div", { class: "act-band" }, words),
      make("div", { class: members[0].image ? "act-pictures" : "" }, ...items),
    );
  }
  roving(box, ".act-token", (item) => say(saidOf.get(item)!), ".act-peak");
  return box;
}

/** What each token says when it is reached. */
const saidOf = new WeakMap<HTMLElement, Said>();

/** One range for all contexts of a feature: from 0, or symmetric where a value is below. */
export function rangeOf(contexts: readonly Context[]): Range {
  const ends = contexts.map(({ values }) => extentOf(values));
  const size = Math.max(0, ...ends.map(([low, high]) => Math.max(-low, high))) || 1;
  return ends.some(([low]) => low < 0) ? [-size, size] : [0, size];
}

function lookControls(look: Look, redraw: () => void): HTMLElement[] {
  const fade = (value: number) => {
    look.opacity = value;
    redraw();
  };
  const lay = (at: number) => {
    look.cover = COVERS[at];
    redraw();
  };
  return [
    slider("opacity", [0, 100], look.opacity, (value) => `${value} %`, fade),
    choice("cover", COVERS, COVERS.indexOf(look.cover), lay),
  ];
}

function placeOf({ example, position, value, cls }: Context): Said {
  return [
    ...(example ? [["example", example] as const] : []),
    ...(position ? [["position", position] as const] : []),
    ...(value === undefined ? [] : [["value", brief(value)] as const]),
    ...(cls === undefined ? [] : [["cls", brief(cls)] as const]),
  ];
}

function headOf(context: Context): HTMLElement {
  const words = placeOf(context).map(([name, said]) => `${name} ${said}`);
  return make("div", { class: "act-place-line" }, words.join(" · "));
}

function text(
  context: Context,
  range: Range,
  ramp: ReturnType<typeof rampFor>,
  say: (said: Said) => void,
): HTMLElement {
  const tokens = context.tokens ?? [];
  const colours = paints(context.values, range, ramp);
  const peak = context.at ?? peakOf(context.values);
  const line = make("div", { class: "act-context-tokens" });
  tokens.forEach((token, at) => {
    const span = make("span", { class: at === peak ? "act-token act-peak" : "act-token" }, visible(token));
    const value = context.values[at];
    const paint = colours[at];
    // A token without activation stands on the page's own ground, so that the others show.
    if (paint && value !== 0) {
      span.style.background = css(paint.ground);
      span.style.color = paint.ink;
    } else if (!paint) span.classList.add("act-missing");
    const where = context.example ? [["example", context.example] as const] : [];
    saidOf.set(span, [...where, ["token", `“${visible(token)}”`], ["value", precisely(value)]]);
    span.addEventListener("click", () => say(saidOf.get(span)!));
    line.append(span);
    if (token.includes("\n")) line.append(make("br"));
  });
  return make("div", { class: "act-context" }, headOf(context), line);
}

function picture(
  context: Context,
  range: Range,
  look: Look,
  draws: (() => void)[],
  say: (said: Said) => void,
): HTMLElement {
  const image = context.image!;
  const grid = context.grid!;
  const ground = document.createElement("canvas");
  const pixels = new ImageData(opaque(image.pixels, image.width * image.height), image.width, image.height);
  sized(ground, image.width, image.height, 1).putImageData(pixels, 0, 0);
  const canvas = make("canvas", { class: "act-panel-canvas", tabindex: "0", role: "application" });
  const words = placeOf(context).map(([name, said]) => `${name} ${said}`);
  canvas.setAttribute("aria-label", `picture, ${words.join(", ")}; arrows walk the patches`);
  let cursor: [number, number] | undefined;
  const draw = () => {
    const bare = look.cover === "grid alone";
    // Pictures have their own light: the ramp stays the light one whatever the page.
    const paint = {
      range,
      ramp: rampFor(range, false, true),
      opacity: bare ? 1 : look.opacity / 100,
      bySize: look.cover === "by size",
    };
    const laid = cover(context.values, paint);
    drawPanel(canvas, PANEL, { image: ground, grid, cover: laid, edges: [], maskWidth: 1, cursor, pins: [] });
  };
  const point = (y: number, x: number) => {
    cursor = [y, x];
    draw();
    const value = precisely(context.values[y * grid[1] + x]);
    say([...placeOf(context).slice(0, 1), ["y", String(y)], ["x", String(x)], ["value", value]]);
  };
  hearPatches(canvas, grid, point, () => cursor);
  canvas.addEventListener("blur", () => {
    cursor = undefined;
    draw();
  });
  draws.push(draw);
  draw();
  return make("figure", { class: "act-panel" }, canvas, make("figcaption", {}, words.join(" · ")));
}

function hearPatches(
  canvas: HTMLCanvasElement,
  [rows, columns]: readonly [number, number],
  point: (y: number, x: number) => void,
  now: () => readonly [number, number] | undefined,
): void {
  const clamp = (value: number, count: number) => Math.min(count - 1, Math.max(0, value));
  canvas.addEventListener("pointermove", (event) => {
    const frame = canvas.getBoundingClientRect();
    const share = (place: number, length: number, count: number) => clamp(Math.floor((place / length) * count), count);
    point(
      share(event.clientY - frame.top, frame.height, rows),
      share(event.clientX - frame.left, frame.width, columns),
    );
  });
  hearKeys(canvas, (act) => {
    if (act.kind !== "move") return;
    const [y, x] = now() ?? [act.y > 0 ? -1 : 0, act.x > 0 ? -1 : 0];
    point(clamp(y + act.y, rows), clamp(x + act.x, columns));
  });
}
