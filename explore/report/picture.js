// The picture: lanes as pixels, and below them, on the same time axis, pools, link, queues and fairness.

const AXIS = 24, PANEL = 78, MIN_SPAN = 200, MOST_LANE = 30;

// `view`: t0, t1, lane0, rows, chosen, client. `drawn` is called after every drawing.
function pictureOf({ table, slices, series, end, lanes, marks }, view, drawn) {
  const stage = at('stage'), picture = at('picture'), over = at('over'), states = table.states;
  const panels = [
    { title: 'blocks in use', top: 1, names: [['device', 'device'], ['host', 'host']] },
    { title: 'link busy', top: 1, fits: true, names: [['h2d', 'to device'], ['d2h', 'to host']] },
    {
      title: 'requests',
      top: Math.max(...['waiting', 'running', 'swapped'].map((name) => table.series.tops[name])),
      names: [['running', 'running'], ['waiting', 'waiting'], ['swapped', 'swapped']],
    },
    { title: table.jain.length ? `fairness of clients with turns due, Jain over ${table.window / 1e6} s` : `fairness: in no window of ${table.window / 1e6} s were turns of two clients due`, top: 1, names: [] },
  ];
  let colours = {}, size = {}, waiting = false, pointer = null;

  function measure() {
    const style = getComputedStyle(document.documentElement);
    const of = (name) => style.getPropertyValue('--' + name).trim();
    const packed = (hex) => {
      const wide = hex.length === 4 ? hex.replace(/[0-9a-f]/gi, '$&$&') : hex;
      const value = parseInt(wide.slice(1), 16);
      return (0xff000000 | (value & 255) << 16 | (value >> 8 & 255) << 8 | value >> 16) >>> 0;
    };
    colours = {
      states: Uint32Array.from([...states.map((name) => packed(of(name))), packed(of('paper'))]),
      ink: of('ink'), dim: of('dim'), link: of('link'), paper: of('paper'), kinds: states.map(of), lines: [of('c1'), of('c3'), of('c6')],
    };
    const scale = window.devicePixelRatio || 1;
    const width = stage.clientWidth, height = stage.clientHeight;
    size = { scale, width, height, lanes: height - AXIS - MARKS * MARK - panels.length * PANEL };
    for (const canvas of [picture, over]) {
      canvas.width = Math.round(width * scale);
      canvas.height = Math.round(height * scale);
    }
  }

  // Lanes fit, or some of them are shown, each at least a pixel high and no more than thirty.
  function laneHeight() { return Math.min(MOST_LANE, size.lanes / view.rows); }
  function clamp() {
    const span = Math.min(end, Math.max(MIN_SPAN, view.t1 - view.t0));
    view.t0 = Math.max(0, Math.min(end - span, view.t0));
    view.t1 = view.t0 + span;
    view.rows = Math.max(Math.min(4, lanes), Math.min(lanes, Math.floor(size.lanes), view.rows));
    view.lane0 = Math.max(0, Math.min(lanes - view.rows, view.lane0));
  }

  const weights = new Float64Array(EMPTY + 1);
  function heaviest() {
    let best = EMPTY;
    for (let k = 0; k <= EMPTY; k += 1) if (weights[k] > weights[best]) best = k;
    weights.fill(0);
    return best;
  }

  // One row of pixels: each the state that fills most of it.
  function paint(lane, line) {
    const low = slices.laneStart[lane], high = slices.laneStart[lane + 1];
    const perPixel = line.length / (view.t1 - view.t0), last = line.length;
    let pixel = 0;
    for (let i = lastAtOrBefore(slices.begin, low, high, view.t0); i < high; i += 1) {
      if (slices.begin[i] >= view.t1) break;
      const from = Math.max(0, (slices.begin[i] - view.t0) * perPixel);
      const to = i + 1 < high ? Math.min(last, (slices.begin[i + 1] - view.t0) * perPixel) : last;
      if (to <= from) continue;
      const hidden = view.client >= 0 && slices.owner[i] >= 0 && table.client_id[slices.owner[i]] !== view.client;
      const kind = hidden ? EMPTY : slices.kind[i];
      const stop = Math.floor(to);
      if (stop === pixel) { weights[kind] += to - from; continue; }
      weights[kind] += pixel + 1 - from;
      line[pixel] = colours.states[heaviest()];
      line.fill(colours.states[kind], pixel + 1, stop);
      pixel = stop;
      weights[kind] += to - stop;
    }
    if (pixel < last) line[pixel] = colours.states[heaviest()];
    weights.fill(0);
  }

  function drawLanes(context) {
    const width = picture.width, height = Math.round(size.lanes * size.scale);
    const image = context.createImageData(width, height);
    const pixels = new Uint32Array(image.data.buffer), line = new Uint32Array(width);
    pixels.fill(colours.states[EMPTY]);
    const tall = laneHeight() * size.scale, gap = tall >= 5 * size.scale ? Math.round(size.scale) : 0;
    for (let j = 0; j < view.rows; j += 1) {
      paint(view.lane0 + j, line);
      const stop = Math.min(height, Math.floor((j + 1) * tall) - gap);
      for (let y = Math.floor(j * tall); y < stop; y += 1) pixels.set(line, y * width);
    }
    context.putImageData(image, 0, 0);
  }

  const across = (t) => (t - view.t0) / (view.t1 - view.t0) * size.width;
  const timeAt = (x) => view.t0 + x / size.width * (view.t1 - view.t0);

  function drawAxis(context) {
    const rough = (view.t1 - view.t0) / Math.max(3, size.width / 95), top = size.lanes + MARKS * MARK;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((digit) => digit * power).find((value) => value >= rough);
    context.fillStyle = colours.ink;
    context.strokeStyle = colours.dim;
    context.textAlign = 'center';
    for (let t = Math.ceil(view.t0 / step) * step; t <= view.t1; t += step) {
      const x = across(t);
      context.beginPath();
      context.moveTo(x, top); context.lineTo(x, top + 5);
      context.stroke();
      if (x > 24 && x < size.width - 24) context.fillText(seconds(t, step * 20), x, top + 17);
    }
  }

  function mean(name, from, to) {
    const sum = series[name], bins = table.series.bins, width = end / bins;
    const upTo = (t) => {
      const i = Math.max(0, Math.min(bins - 1e-9, t / width)), whole = Math.floor(i);
      return sum[whole] + (i - whole) * (sum[whole + 1] - sum[whole]);
    };
    return (upTo(to) - upTo(from)) / Math.max(1e-12, (to - from) / width);
  }

  function drawPanel(context, panel, top) {
    const bottom = top + PANEL - 6, height = PANEL - 24;
    const levels = panel.names.map(([name]) => Float64Array.from({ length: Math.ceil(size.width) },
      (_, x) => mean(name, timeAt(x), timeAt(x + 1))));
    const most = panel.fits ? Math.max(0.01, ...levels.map((values) => values.reduce((a, b) => Math.max(a, b)))) : panel.top;
    context.strokeStyle = colours.dim;
    context.lineWidth = 0.5;
    context.beginPath();
    context.moveTo(0, bottom); context.lineTo(size.width, bottom);
    context.stroke();
    context.lineWidth = 1.4;
    levels.forEach((values, index) => {
      context.strokeStyle = colours.lines[index];
      context.setLineDash(index === 1 ? [5, 3] : index === 2 ? [2, 2] : []);
      context.beginPath();
      values.forEach((value, x) => {
        const y = bottom - Math.min(1, value / most) * height;
        if (x === 0) context.moveTo(x, y); else context.lineTo(x, y);
      });
      context.stroke();
      context.setLineDash([]);
    });
    if (!panel.names.length) drawFairness(context, bottom, height);
    context.textAlign = 'left';
    context.fillStyle = colours.ink;
    let x = 4;
    const tell = (text) => { context.fillText(text, x, top + 12); x += context.measureText(text).width + 10; };
    const limit = panel.top > 1 ? Math.round(most) : panel.names.length ? `${(most * 100).toPrecision(2).replace('1.0e+2', '100')} %` : '1';
    tell(panel.names.length || table.jain.length ? `${panel.title}, 0 to ${limit}` : panel.title);
    panel.names.forEach(([, label], index) => { context.fillStyle = colours.lines[index]; tell(label); });
  }

  function drawFairness(context, bottom, height) {
    context.strokeStyle = context.fillStyle = colours.lines[0];
    for (const [begin, jain] of table.jain) {
      const from = across(begin), to = across(begin + table.window);
      if (jain === null || to < 0 || from > size.width) continue;
      const y = bottom - jain * height;
      context.beginPath();
      context.moveTo(from, y); context.lineTo(Math.max(to, from + 1), y);
      context.stroke();
    }
  }

  function draw() {
    waiting = false;
    if (size.width < 1 || size.lanes < 1) return;
    clamp();
    const context = picture.getContext('2d');
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, picture.width, picture.height);
    drawLanes(context);
    context.setTransform(size.scale, 0, 0, size.scale, 0, 0);
    context.font = '12px system-ui, sans-serif';
    const shown = (one) => view.client < 0 || table.client_id[one.r] === view.client;
    const colour = (one, row) => (!shown(one) ? null : row === 0 ? colours.ink : colours.kinds[one.kind]);
    drawMarks(context, marks, size.lanes, size.width, across, colour, colours.ink, colours.paper);
    drawAxis(context);
    panels.forEach((panel, i) => drawPanel(context, panel, size.lanes + MARKS * MARK + AXIS + i * PANEL));
    mark();
    drawn();
  }

  function redraw() {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(draw);
  }

  // What lies over the picture: the chosen request, and the moment under the pointer.
  function mark() {
    const context = over.getContext('2d');
    context.setTransform(size.scale, 0, 0, size.scale, 0, 0);
    context.clearRect(0, 0, size.width, size.height);
    const r = view.chosen, row = r < 0 ? -1 : table.lane[r] - view.lane0;
    if (row >= 0 && row < view.rows) {
      const from = Math.max(-5, across(table.begin[r])), to = Math.min(size.width + 5, across(slices.end[r]));
      const tall = Math.max(4, laneHeight()), y = Math.max(1, row * laneHeight() - Math.max(0, 4 - laneHeight()) / 2);
      if (to > 0 && from < size.width) {
        context.strokeStyle = colours.ink;
        context.lineWidth = 2;
        context.strokeRect(from - 1, y, Math.max(to - from, 3) + 2, tall);
        context.beginPath();
        const middle = Math.max(6, Math.min(size.width - 6, (from + to) / 2));
        context.fillStyle = colours.ink;
        context.moveTo(middle, y + tall + 1); context.lineTo(middle - 5, y + tall + 9); context.lineTo(middle + 5, y + tall + 9);
        context.fill();
      }
    }
    if (!pointer) { at('readout').textContent = ''; return; }
    context.strokeStyle = colours.dim;
    context.lineWidth = 1;
    context.beginPath();
    context.moveTo(pointer.x, 0); context.lineTo(pointer.x, size.height);
    context.stroke();
    const from = timeAt(pointer.x - 0.5), to = timeAt(pointer.x + 0.5);
    const told = panels.flatMap((panel) => panel.names.map(([name, label]) => {
      const value = mean(name, from, to);
      return `${label} ${panel.top === 1 ? Math.round(value * 100) + ' %' : value.toPrecision(2).replace(/\.0$/, '')}`;
    }));
    const moment = timeAt(pointer.x);
    const window_ = table.jain.find(([begin]) => moment >= begin && moment < begin + table.window);
    if (window_ && window_[1] !== null) told.push(`Jain ${window_[1].toFixed(2)}, gap ${window_[2]} tokens`);
    const under = hit(pointer.x, pointer.y);
    const who = under ? `; ${table.request_id[under.owner]}: ${states[under.kind]}` : '';
    at('readout').textContent = `${seconds(timeAt(pointer.x), view.t1 - view.t0)}: ${told.join(', ')}${who}`;
  }

  function hit(x, y) {
    const lane = view.lane0 + Math.floor(y / laneHeight());
    if (y < 0 || y >= size.lanes || lane >= view.lane0 + view.rows) return null;
    const low = slices.laneStart[lane], high = slices.laneStart[lane + 1], reach = 3;
    for (const shift of [0, -1, 1, -2, 2, -reach, reach]) {
      const i = lastAtOrBefore(slices.begin, low, high, timeAt(x + shift));
      const owner = slices.owner[i];
      if (owner >= 0 && (view.client < 0 || table.client_id[owner] === view.client)) return { owner, kind: slices.kind[i] };
    }
    return null;
  }

  function point(at_) { pointer = at_; mark(); }

  return { measure, draw, redraw, point, hit, timeAt, laneHeight, size: () => size };
}
