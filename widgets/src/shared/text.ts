/** Text that came from a model or a data set: shown as it is, never run, nothing hidden in it. */

const NAMED: Record<string, string> = {
  "\n": "↵",
  "\r": "␍",
  "\t": "⇥",
  "\u00a0": "⍽",
  "\u200b": "[U+200B]",
  "\ufeff": "[U+FEFF]",
};

/** A token whose line breaks, tabs and invisible or direction-changing characters can be seen. */
export function visible(token: string): string {
  if (token === "") return "∅";
  // biome-ignore lint/suspicious/noControlCharactersInRegex: control characters are what we look for
  const seen = token.replace(/[\u0000-\u001f\u007f-\u00a0\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]/g, named);
  return seen.trim() === "" ? seen.replace(/ /g, "␣") : seen;
}

function named(letter: string): string {
  return NAMED[letter] ?? `[U+${letter.codePointAt(0)!.toString(16).toUpperCase().padStart(4, "0")}]`;
}

/** At most `size` letters, the end replaced by an ellipsis. */
export function cut(words: string, size: number): string {
  const letters = [...words];
  return letters.length <= size ? words : `${letters.slice(0, Math.max(1, size - 1)).join("")}…`;
}

/** One cell of a CSV file. A leading = + - @ in text would be read as a formula by spreadsheets, so it gets a quote mark. */
export function csvCell(value: string | number): string {
  if (typeof value === "number") return String(value);
  const safe = /^[=+\-@\t\r]/.test(value) ? `'${value}` : value;
  return /[",\n\r']/.test(safe) ? `"${safe.replace(/"/g, '""')}"` : safe;
}

export function csv(lines: readonly (readonly (string | number)[])[]): string {
  return `${lines.map((line) => line.map(csvCell).join(",")).join("\r\n")}\r\n`;
}
