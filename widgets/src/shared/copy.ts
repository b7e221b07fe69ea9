/** Pictures and tables out of the widget: to the clipboard, or as a download where the browser refuses. */

export async function copyText(words: string, name: string): Promise<string> {
  try {
    await navigator.clipboard.writeText(words);
    return "CSV copied";
  } catch {
    download(new Blob([words], { type: "text/csv" }), `${name}.csv`);
    return `CSV saved as ${name}.csv`;
  }
}

export async function copyPicture(canvas: HTMLCanvasElement, name: string): Promise<string> {
  const picture = await new Promise<Blob | null>((done) => canvas.toBlob(done, "image/png"));
  if (!picture) return "The browser could not make a PNG of this size";
  try {
    await navigator.clipboard.write([new ClipboardItem({ "image/png": picture })]);
    return "PNG copied";
  } catch {
    download(picture, `${name}.png`);
    return `PNG saved as ${name}.png`;
  }
}

/** Canvases of one place, drawn over each other on the theme's ground, the lowest as pale as it is on screen. */
export function flattened(layers: readonly HTMLCanvasElement[], ground: string, lowest = 1): HTMLCanvasElement {
  const whole = document.createElement("canvas");
  whole.width = layers[0].width;
  whole.height = layers[0].height;
  const brush = whole.getContext("2d")!;
  brush.fillStyle = ground;
  brush.fillRect(0, 0, whole.width, whole.height);
  for (const [at, layer] of layers.entries()) {
    brush.globalAlpha = at ? 1 : lowest;
    brush.drawImage(layer, 0, 0);
  }
  return whole;
}

/** A file name from a title. */
export function fileName(title: string): string {
  return (
    title
      .toLowerCase()
      .replace(/[^a-z0-9]+/g, "_")
      .replace(/^_+|_+$/g, "")
      .slice(0, 60) || "activarium"
  );
}

function download(content: Blob, name: string): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(content);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
