// What a run is about, visible at full zoom: every preemption, swap and stall as a mark below the lanes.

const MARK = 13, MARKS = 3;

// A preemption: a request that has computed leaves the device, until it computes again or could. Stretches of
// swaps and stalls are as they are.
function marksOf({ table, slices }) {
  const preemptions = [], swaps = [], stalls = [], names = table.states;
  const kinds = (...of) => new Set(of.map((name) => names.indexOf(name)));
  const away = kinds('parked', 'swap-out', 'swap-in'), work = kinds('prefill', 'decode'), back = kinds('prefill', 'decode', 'paused');
  const copies = kinds('swap-out', 'swap-in'), stalled = names.indexOf('stalled');
  for (let r = 0; r < table.row.length; r += 1) {
    const first = slices.first[r], last = first + table.count[r];
    let begun = false, gone = null;
    for (let i = first; i < last; i += 1) {
      const kind = slices.kind[i], from = slices.begin[i], to = i + 1 < last ? slices.begin[i + 1] : slices.end[r];
      begun = begun || work.has(kind);
      if (copies.has(kind)) swaps.push({ from, to, r, kind });
      if (kind === stalled) stalls.push({ from, to, r, kind });
      if (begun && away.has(kind)) {
        if (gone) gone.to = to; else preemptions.push(gone = { from, to, r, kind });
      } else if (back.has(kind)) gone = null;
    }
  }
  preemptions.sort((a, b) => a.from - b.from || a.r - b.r);
  return [{ title: 'preemptions', all: preemptions }, { title: 'swaps', all: swaps }, { title: 'stalls', all: stalls }];
}

// `colour`: of a mark, null for one that is not shown. Every pixel once, however many marks there are.
function drawMarks(context, rows, top, width, across, colour, ink, paper) {
  const pixels = new Array(Math.ceil(width));
  rows.forEach(({ title, all }, row) => {
    const y = top + row * MARK + 2, height = MARK - 3;
    pixels.fill(null);
    for (const one of all) {
      const from = across(one.from), to = row === 0 ? from : across(one.to), fill = colour(one, row);
      if (to < 0 || from >= width || fill === null) continue;
      const first = Math.max(0, Math.floor(from));
      pixels.fill(fill, first, Math.max(first + 1, Math.round(to)));
    }
    for (let x = 0; x < pixels.length;) {
      let end = x + 1;
      while (end < pixels.length && pixels[end] === pixels[x]) end += 1;
      if (pixels[x] !== null) { context.fillStyle = pixels[x]; context.fillRect(x, y, end - x, height); }
      x = end;
    }
    const text = `${title} ${all.length}`;
    context.textAlign = 'left';
    context.fillStyle = paper;
    context.fillRect(0, y - 1, context.measureText(text).width + 10, height + 2);
    context.fillStyle = ink;
    context.fillText(text, 4, y + height - 0.5);
  });
}

// Where the last turns begin to trickle out: after it a hundredth of all life is left. The end, if that is near it.
function busyUntil({ table, slices }, end) {
  const bins = 400, lived = new Float64Array(bins + 1);
  for (let r = 0; r < table.row.length; r += 1) {
    const from = table.begin[r] / end * bins, to = slices.end[r] / end * bins;
    for (let b = Math.floor(from); b < Math.min(bins, to); b += 1) lived[b] += Math.min(b + 1, to) - Math.max(b, from);
  }
  const total = lived.reduce((sum, value) => sum + value, 0);
  let left = 0, bin = bins;
  while (bin > 0 && left + lived[bin - 1] <= total / 100) { bin -= 1; left += lived[bin]; }
  return bin < 0.75 * bins ? (bin + 1) / bins * end : end;
}
