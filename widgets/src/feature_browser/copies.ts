/** The list and a page as tables. */

import { exact } from "../shared/numbers.ts";
import { csv } from "../shared/text.ts";
import type { Columns } from "./list.ts";
import type { Sheet } from "./sheet.ts";

/** These rows of the list, all columns, every float as exact as it came. */
export function listCsv({ features, words, numbers }: Columns, rows: readonly number[]): string {
  const head = ["feature", ...Object.keys(words), ...Object.keys(numbers)];
  const lines = rows.map((row) => [
    features[row],
    ...Object.values(words).map((list) => list[row]),
    ...Object.values(numbers).map((list) => Number(exact(list[row], "f4"))),
  ]);
  return csv([head, ...lines]);
}

/** The contexts of a page, one line each. */
export function pageCsv({ contexts }: Sheet): string {
  const lines = (contexts ?? []).map(({ band, example, position, value, tokens, values }) => [
    band,
    example,
    position,
    value ?? "",
    tokens?.join("") ?? "",
    Array.from(values).join(" "),
  ]);
  return csv([["band", "example", "position", "value", "text", "values"], ...lines]);
}
