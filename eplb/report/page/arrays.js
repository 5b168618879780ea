// Decodes the arrays of the payload (base64, deflate, little-endian), which `html_arrays.py` encodes.

const ARRAY_TYPES = {
  uint8: Uint8Array, uint16: Uint16Array, int32: Int32Array, float32: Float32Array, float64: Float64Array,
};

async function unpackArray(written) {
  const bytes = Uint8Array.from(atob(written.deflate), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  const buffer = await new Response(stream).arrayBuffer();
  return { shape: written.shape, data: new ARRAY_TYPES[written.dtype](buffer) };
}

// The payload with every packed array decoded.
async function unpack(value) {
  if (Array.isArray(value)) return Promise.all(value.map(unpack));
  if (value === null || typeof value !== "object") return value;
  if ("deflate" in value) return unpackArray(value);
  const entries = Object.entries(value).map(async ([key, inner]) => [key, await unpack(inner)]);
  return Object.fromEntries(await Promise.all(entries));
}

// The subarray at these first indices, a view without copying.
function at(array, ...index) {
  const size = array.shape.slice(index.length).reduce((a, b) => a * b, 1);
  const start = index.reduce((sum, i, axis) => sum * array.shape[axis] + i, 0) * size;
  return array.data.subarray(start, start + size);
}

function largest(numbers) {
  return numbers.reduce((a, b) => (b > a ? b : a), -Infinity);
}

function total(numbers) {
  return numbers.reduce((a, b) => a + b, 0);
}

// [E][E] adjusted lift of every pair of a layer, from its upper triangle in levels; NaN on the diagonal and for experts
// without tokens, so that these cells stay empty.
function liftMatrix(coactivation, layer) {
  const tokens = at(coactivation.tokens, layer);
  const levels = at(coactivation.levels, layer);
  const [lowest, step] = [coactivation.lowest[layer], coactivation.step[layer]];
  const valueOf = Float64Array.from({ length: 256 }, (_, level) => (level ? lowest * 2 ** ((level - 1) * step) : 0));
  const rows = Array.from(tokens, () => new Float64Array(tokens.length).fill(NaN));
  let next = 0;
  for (let i = 0; i < tokens.length; i++) {
    for (let j = i + 1; j < tokens.length; j++) {
      const value = valueOf[levels[next++]];
      if (tokens[i] && tokens[j]) rows[i][j] = rows[j][i] = value;
    }
  }
  return rows;
}

// [E][E] tokens that chose both, computed from the lift and rounded; exact up to the quantization. The lift is
// (observed + prior) / (expected + prior), and what is expected is a product of one factor for each expert.
function pairMatrix(coactivation, layer, lift) {
  const factors = at(coactivation.factors, layer);
  const prior = coactivation.prior_pairs;
  const pairs = (value, i, j) => Math.max(0, Math.round(value * (factors[i] * factors[j] + prior) - prior));
  return lift.map((row, i) => row.map((value, j) => pairs(value, i, j)));
}

function inOrder(matrix, order) {
  return Array.from(order, (i) => Float64Array.from(order, (j) => matrix[i][j]));
}
