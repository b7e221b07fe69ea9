/** Bytes from Python to typed arrays. The table that names them comes beside the bytes, as small JSON. */

export type Dtype = "f4" | "f8" | "u1";
export type Numbers = Float32Array | Float64Array | Uint8Array;

export interface ArrayEntry {
  name: string;
  dtype: Dtype;
  shape: number[];
}

const KINDS = { f4: Float32Array, f8: Float64Array, u1: Uint8Array } as const;
/** Every array starts at a multiple of this, as `payload.py` writes them. */
const ALIGN = 8;

/** Undo zlib's deflate with what the browser has built in. */
export async function inflate(bytes: Uint8Array): Promise<Uint8Array> {
  const stream = new Blob([bytes as Uint8Array<ArrayBuffer>]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** The arrays of one payload by name. */
export function split(bytes: Uint8Array, table: readonly ArrayEntry[]): Record<string, Numbers> {
  const found: Record<string, Numbers> = {};
  let at = 0;
  for (const { name, dtype, shape } of table) {
    const size = shape.reduce((a, b) => a * b, 1) * KINDS[dtype].BYTES_PER_ELEMENT;
    found[name] = numbers(bytes.subarray(at, at + size), dtype);
    at += Math.ceil(size / ALIGN) * ALIGN;
  }
  return found;
}

/** One array over these bytes; copies if they start at an odd place, which typed arrays refuse. */
export function numbers(bytes: Uint8Array, dtype: Dtype): Numbers {
  const Kind = KINDS[dtype];
  const own = bytes.byteOffset % Kind.BYTES_PER_ELEMENT ? bytes.slice() : bytes;
  return new Kind(own.buffer as ArrayBuffer, own.byteOffset, own.byteLength / Kind.BYTES_PER_ELEMENT);
}

/** A trait's bytes: hosts hand over a DataView, exported pages a Uint8Array. */
export function bytesOf(view: ArrayBufferView | ArrayBuffer | null | undefined): Uint8Array {
  if (!view) return new Uint8Array();
  return view instanceof ArrayBuffer
    ? new Uint8Array(view)
    : new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
}

/** Payload to arrays in one step. */
export async function unpack(
  view: ArrayBufferView | null | undefined,
  table: readonly ArrayEntry[],
): Promise<Record<string, Numbers>> {
  return split(await inflate(bytesOf(view)), table);
}
