/** Axes, bands, curves and bars onto a canvas. */

import type { Numbers } from "../shared/bytes.ts";
import { short } from "../shared/numbers.ts";
import { type Scale, shareAt, ticksFor } from "../shared/scale.ts";
import { cut, visible } from "../shared/text.ts";
import type { Theme } from "../shared/theme.ts";
import { type Box, barEnds, type Curve, type Form, type Layout, placeX, placeY, stretches } from "./draw.ts";

/** Okabe and Ito's colours, which colour-blind readers tell apart, without the yellow that white swallows. */
const LIGHT = ["#0072b2", "#d55e00", "#00805c", "#a8458a", "#946200", "#2f8fc4", "#4d4d4d"];
const DARK = ["#56b4e9", "#ff9346", "#2fd0a5", "#eba0cf", "#e6b43c", "#a9d8f5", "#d0d0d0"];
/** Every colour comes back with another dash, and neighbours differ in both. */
const DASHES: readonly (readonly number[])[] = [[], [7, 3], [2, 2.5], [9, 3, 2, 3], [4, 4]];
/** Up to here every point gets a dot of its own. */
const DOTTED = 48;

export interface Pen {
  colour: string;
  dash: readonly number[];
}

export function penOf(curve: number, theme: Theme): Pen {
  const colours = theme.dark ? DARK : LIGHT;
  return { colour: colours[curve % colours.length], dash: DASHES[curve % DASHES.length] };
}

export interface Axes {
  x: Scale;
  y: Scale;
  /** Words along x, where x has no numbers. */
  names: readonly string[] | undefined;
  whole: boolean;
  xLabel: string;
  unit: string;
}

type Brush = CanvasRenderingContext2D;

/** A number beside an axis: whole ones as they are, so that neighbours are written alike. */
export function tickWords(tick: number): string {
  return Number.isInteger(tick) && Math.abs(tick) < 1e7 ? String(tick) : short(tick);
}

export function yTicks(scale: Scale, height: number): number[] {
  return ticksFor(scale, 28 / height);
}

export function drawAxes(brush: Brush, { plot, width, height }: Layout, axes: Axes, theme: Theme): void {
  brush.font = `11px ${theme.font}`;
  brush.lineWidth = 1;
  brush.textBaseline = "middle";
  brush.textAlign = "right";
  for (const tick of yTicks(axes.y, plot.height)) {
    const y = Math.round(placeY(axes.y, plot, tick)) + 0.5;
    rule(brush, plot.x, y, plot.x + plot.width, y, theme.line, tick === 0 ? 1 : 0.45);
    brush.fillStyle = theme.ink;
    brush.fillText(tickWords(tick), plot.x - 6, y);
  }
  drawXTicks(brush, plot, axes, theme);
  rule(brush, plot.x, plot.y + plot.height + 0.5, plot.x + plot.width, plot.y + plot.height + 0.5, theme.muted, 1);
  brush.fillStyle = theme.muted;
  brush.textBaseline = "alphabetic";
  brush.textAlign = "left";
  brush.fillText(cut(axes.unit, 60), 2, 12, width - 4);
  brush.textAlign = "right";
  brush.fillText(cut(visible(axes.xLabel), 60), plot.x + plot.width, height - 4, plot.width);
}

function drawXTicks(brush: Brush, plot: Box, axes: Axes, theme: Theme): void {
  const words = (tick: number) => (axes.names ? cut(visible(axes.names[tick] ?? ""), 14) : tickWords(tick));
  const rough = axes.names ? axes.names.slice(0, 300).map((_, at) => at) : ticksFor(axes.x, 40 / plot.width);
  const widest = Math.max(20, ...rough.map((tick) => brush.measureText(words(tick)).width));
  brush.textBaseline = "top";
  brush.textAlign = "center";
  let free = Number.NEGATIVE_INFINITY;
  for (const tick of ticksFor(axes.x, (widest + 12) / plot.width, axes.whole)) {
    const x = Math.round(placeX(axes.x, plot, tick)) + 0.5;
    if (x < plot.x - 1 || x > plot.x + plot.width + 1) continue;
    rule(brush, x, plot.y + plot.height, x, plot.y + plot.height + 4, theme.muted, 1);
    const half = brush.measureText(words(tick)).width / 2;
    // A label at the edge leans inwards, so that nothing is cut off.
    const at = Math.min(x, plot.x + plot.width + 10 - half);
    if (at - half < free) continue;
    free = at + half + 6;
    brush.fillStyle = theme.ink;
    brush.fillText(words(tick), at, plot.y + plot.height + 7);
  }
}

export function rule(
  brush: Brush,
  x: number,
  y: number,
  toX: number,
  toY: number,
  colour: string,
  alpha: number,
): void {
  brush.save();
  brush.globalAlpha = alpha;
  brush.strokeStyle = colour;
  brush.beginPath();
  brush.moveTo(x, y);
  brush.lineTo(toX, toY);
  brush.stroke();
  brush.restore();
}

/** One curve with its band. `centred`: bars stand around their x. */
export function drawCurve(
  brush: Brush,
  plot: Box,
  axes: Axes,
  x: Numbers,
  curve: Curve,
  pen: Pen,
  form: Form,
  centred: boolean,
): void {
  brush.save();
  brush.beginPath();
  brush.rect(plot.x - 5, plot.y - 5, plot.width + 10, plot.height + 10);
  brush.clip();
  brush.strokeStyle = brush.fillStyle = pen.colour;
  if (form === "bars") drawBars(brush, plot, axes, x, curve, pen, centred);
  else {
    if (curve.band) drawBand(brush, plot, axes, x, curve.band);
    drawLine(brush, plot, axes, x, curve.values, pen);
  }
  brush.restore();
}

function drawBand(brush: Brush, plot: Box, axes: Axes, x: Numbers, band: Numbers): void {
  const count = x.length;
  const [low, high] = [band.subarray(0, count), band.subarray(count)];
  brush.globalAlpha = 0.18;
  for (const [from, to] of stretches([low, high], count)) {
    brush.beginPath();
    for (let at = from; at <= to; at++) brush.lineTo(placeX(axes.x, plot, x[at]), placeY(axes.y, plot, high[at]));
    for (let at = to; at >= from; at--) brush.lineTo(placeX(axes.x, plot, x[at]), placeY(axes.y, plot, low[at]));
    brush.closePath();
    brush.fill();
    // A band of one point is a line that would have no area.
    if (from === to) brush.stroke();
  }
  brush.globalAlpha = 1;
}

function drawLine(brush: Brush, plot: Box, axes: Axes, x: Numbers, values: Numbers, pen: Pen): void {
  const dots = x.length <= DOTTED;
  brush.lineWidth = 1.8;
  brush.lineJoin = "round";
  for (const [from, to] of stretches([values], x.length)) {
    brush.setLineDash([...pen.dash]);
    brush.beginPath();
    for (let at = from; at <= to; at++) brush.lineTo(placeX(axes.x, plot, x[at]), placeY(axes.y, plot, values[at]));
    brush.stroke();
    if (!dots && from < to) continue;
    for (let at = from; at <= to; at++) disc(brush, placeX(axes.x, plot, x[at]), placeY(axes.y, plot, values[at]), 2.4);
  }
  brush.setLineDash([]);
}

function drawBars(brush: Brush, plot: Box, axes: Axes, x: Numbers, curve: Curve, pen: Pen, centred: boolean): void {
  const ground = Math.min(plot.y + plot.height, Math.max(plot.y, placeY(axes.y, plot, 0)));
  const inside = (place: number) => Math.min(plot.x + plot.width, Math.max(plot.x, place));
  brush.setLineDash([...pen.dash]);
  barEnds(x, centred).forEach(([from, to], at) => {
    if (!Number.isFinite(curve.values[at])) return;
    const [left, right] = [inside(placeX(axes.x, plot, from)), inside(placeX(axes.x, plot, to))];
    const top = placeY(axes.y, plot, curve.values[at]);
    brush.globalAlpha = 0.35;
    brush.fillRect(left, Math.min(top, ground), right - left, Math.abs(ground - top));
    brush.globalAlpha = 1;
    brush.lineWidth = 1.2;
    if (right - left >= 3) brush.strokeRect(left, Math.min(top, ground), right - left, Math.abs(ground - top));
    if (curve.band)
      whisker(
        brush,
        (left + right) / 2,
        [at, at + x.length].map((i) => placeY(axes.y, plot, curve.band![i])),
      );
  });
  brush.setLineDash([]);
}

function whisker(brush: Brush, x: number, [low, high]: readonly number[]): void {
  if (!Number.isFinite(low) || !Number.isFinite(high)) return;
  brush.save();
  brush.setLineDash([]);
  brush.beginPath();
  brush.moveTo(x, low);
  brush.lineTo(x, high);
  brush.stroke();
  brush.restore();
}

export function disc(brush: Brush, x: number, y: number, radius: number): void {
  brush.beginPath();
  brush.arc(x, y, radius, 0, 2 * Math.PI);
  brush.fill();
}

/** A point that is pointed at or pinned: white inside black, to show on any ground. */
export function ring(brush: Brush, x: number, y: number, colour: string, pinned: boolean): void {
  brush.fillStyle = colour;
  disc(brush, x, y, 3.4);
  for (const [ink, width] of [
    [pinned ? "#000" : "#fff", 3.5],
    [pinned ? "#fff" : "#000", 1.5],
  ] as const) {
    brush.strokeStyle = ink;
    brush.lineWidth = width;
    brush.beginPath();
    brush.arc(x, y, 4.6, 0, 2 * Math.PI);
    brush.stroke();
  }
}

/** A sample of a curve's line, for the legend. */
export function drawSample(brush: Brush, x: number, y: number, width: number, pen: Pen): void {
  brush.strokeStyle = brush.fillStyle = pen.colour;
  brush.lineWidth = 2;
  brush.setLineDash([...pen.dash]);
  brush.beginPath();
  brush.moveTo(x, y);
  brush.lineTo(x + width, y);
  brush.stroke();
  brush.setLineDash([]);
}

export function offAxis(scale: Scale, value: number): boolean {
  const share = shareAt(scale, value);
  return !(share >= -0.001 && share <= 1.001);
}
