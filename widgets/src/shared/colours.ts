/** Colours for numbers: a cividis-like ramp for magnitudes; blue, ground, orange for signed values. */

export type Rgb = readonly [number, number, number];
export type Range = readonly [number, number];

// The light ramps are those of pictures.py, so that the static picture and the widget agree.
const SEQUENTIAL: Rgb[] = [
  [0, 34, 78],
  [53, 69, 108],
  [102, 105, 112],
  [148, 142, 119],
  [200, 184, 102],
  [254, 232, 56],
];
const DIVERGING: Rgb[] = [
  [20, 76, 140],
  [90, 150, 205],
  [190, 217, 237],
  [247, 247, 247],
  [250, 205, 160],
  [230, 135, 50],
  [160, 72, 0],
];
// In the dark, zero is dark too: a white middle would glare and hide the ends.
const DIVERGING_DARK: Rgb[] = [
  [170, 214, 250],
  [88, 152, 214],
  [44, 84, 132],
  [33, 35, 39],
  [128, 72, 24],
  [210, 124, 46],
  [255, 203, 142],
];

/** Code of a missing value; codes 0 to 254 span the range. */
export const MISSING = 255;
const STEPS = 254;

export function isSigned([low, high]: Range): boolean {
  return low < 0 && high > 0;
}

/** The ramp for this range. `faint`: for text and pictures, where zero must be the ground even without a sign. */
export function rampFor(range: Range, dark: boolean, faint = false): Rgb[] {
  const both = dark ? DIVERGING_DARK : DIVERGING;
  if (isSigned(range)) return both;
  if (!faint) return SEQUENTIAL;
  return range[1] <= 0 ? both.slice(0, 4) : both.slice(3);
}

export function mix(ramp: readonly Rgb[], share: number): Rgb {
  const place = Math.min(1, Math.max(0, share)) * (ramp.length - 1);
  const low = Math.min(Math.floor(place), ramp.length - 2);
  const [a, b, t] = [ramp[low], ramp[low + 1], place - low];
  return [0, 1, 2].map((c) => Math.round(a[c] + (b[c] - a[c]) * t)) as unknown as Rgb;
}

export function shareOf(value: number, [low, high]: Range): number {
  return high > low ? (value - low) / (high - low) : 0.5;
}

/** Code of a value, as `payload.py` quantises. */
export function codeOf(value: number, range: Range): number {
  if (Number.isNaN(value)) return MISSING;
  return Math.round(Math.min(1, Math.max(0, shareOf(value, range))) * STEPS);
}

/** Value in the middle of a code. */
export function decoded(code: number, [low, high]: Range): number {
  return code === MISSING ? Number.NaN : low + ((high - low) * code) / STEPS;
}

/** Code of zero, or of the end nearest to it: pooling keeps what is furthest from here. */
export function centreOf(range: Range): number {
  return codeOf(0, range);
}

/** 256 colours as little-endian RGBA words. `coded` is the range of the codes, `shown` that of the ramp. */
export function table(ramp: readonly Rgb[], missing: Rgb, coded: Range, shown: Range): Uint32Array {
  const words = new Uint32Array(256);
  for (let code = 0; code < 255; code++) words[code] = word(mix(ramp, shareOf(decoded(code, coded), shown)));
  words[MISSING] = word(missing);
  return words;
}

export function word([r, g, b]: Rgb): number {
  return ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0;
}

export function css([r, g, b]: Rgb): string {
  return `rgb(${r},${g},${b})`;
}

/** Black or white, whichever reads better on this ground (WCAG relative luminance). */
export function inkOn(ground: Rgb): "#000" | "#fff" {
  const [r, g, b] = ground.map((c) => ((c / 255 + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.18 ? "#000" : "#fff";
}

/** Colours of edges below and above zero. */
export function signColours(dark: boolean): { below: string; above: string } {
  const ramp = rampFor([-1, 1], dark);
  return { below: css(ramp[1]), above: css(ramp[5]) };
}
