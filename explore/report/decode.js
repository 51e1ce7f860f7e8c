// Data blocks of the page: base64 of gzip, decoded once. Times are microseconds since the run began.

const EMPTY = 8;

const at = (id) => document.getElementById(id);

async function unpacked(name) {
  const text = atob(at('data-' + name).textContent);
  const bytes = Uint8Array.from(text, (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('gzip'));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// Slices lane by lane: begin, state, owner; a slice ends where the next of its lane begins.
function decode(table, bytes) {
  const total = table.count.reduce((sum, n) => sum + n, 0);
  const room = total + table.row.length + 2 * table.lanes;
  const begin = new Float64Array(room), kind = new Uint8Array(room), owner = new Int32Array(room);
  const laneStart = new Int32Array(table.lanes + 1), first = new Int32Array(table.row.length);
  const end = new Float64Array(table.row.length);
  let n = 0, position = 0, lane = -1, free = 0;
  const put = (t, k, r) => { begin[n] = t; kind[n] = k; owner[n] = r; n += 1; };
  for (let r = 0; r < table.row.length; r += 1) {
    if (table.lane[r] !== lane) {
      if (lane >= 0) put(free, EMPTY, -1);
      lane = table.lane[r];
      laneStart[lane] = n;
      free = 0;
    }
    let t = table.begin[r];
    if (t > free) put(free, EMPTY, -1);
    first[r] = n;
    for (let i = 0; i < table.count[r]; i += 1) {
      let value = 0, scale = 1, byte = 0;
      do {
        byte = bytes[position]; position += 1;
        value += (byte & 127) * scale; scale *= 128;
      } while (byte & 128);
      put(t, value % 8, r);
      t += Math.floor(value / 8);
    }
    end[r] = free = t;
  }
  if (lane >= 0) put(free, EMPTY, -1);
  laneStart[table.lanes] = n;
  return { begin, kind, owner, laneStart, first, end };
}

// Sums up to each bin, so that a mean over any stretch costs the same.
function sums(bytes, scale) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const found = {};
  Object.entries(scale.tops).forEach(([name, top], index) => {
    const sum = new Float64Array(scale.bins + 1);
    for (let i = 0; i < scale.bins; i += 1) {
      sum[i + 1] = sum[i] + view.getUint16(2 * (index * scale.bins + i), true) / 65535 * top;
    }
    found[name] = sum;
  });
  return found;
}

function lastAtOrBefore(values, low, high, t) {
  while (low + 1 < high) {
    const middle = (low + high) >> 1;
    if (values[middle] <= t) low = middle; else high = middle;
  }
  return low;
}

// ---------------------------------------------------------------------- words

const seconds = (t, span = t) => {
  const digits = Math.max(0, Math.min(6, 3 - Math.floor(Math.log10(Math.max(span, 1) / 1e6))));
  return (t / 1e6).toFixed(digits) + ' s';
};
const round = (t) => (t >= 1e5 ? (t / 1e6).toPrecision(3) + ' s' : (t / 1e3).toPrecision(3) + ' ms');
const length = (t) => (t >= 1e9 ? Math.round(t / 1e6) + ' s' : t === 0 ? '0 s' : round(t));

function element(tag, text, parent) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (parent) parent.append(made);
  return made;
}
