// The lane view: what the page's tools, keys, pointers and tables do to it.

function start(table, slices, series) {
  const end = table.series.end, lanes = table.lanes, model = { table, slices, series, end, lanes, marks: marksOf({ table, slices }) };
  const stage = at('stage');
  const ids = new Map(table.request_id.map((id, r) => [id, r]));
  const rows = new Map(table.row.map((row, r) => [row, r]));
  const arrivals = table.begin.map((_, r) => r).sort((a, b) => table.begin[a] - table.begin[b] || a - b);
  const place = new Int32Array(arrivals.length);
  arrivals.forEach((r, i) => { place[r] = i; });
  const view = { t0: 0, t1: busyUntil(model, end), lane0: 0, rows: lanes, chosen: -1, client: -1 };
  const preemptions = model.marks[0].all;
  let jumped = -1;
  let telling = 0;
  const picture = pictureOf(model, view, () => {
    clearTimeout(telling);
    telling = setTimeout(tellRange, 120);
  });
  const { redraw } = picture;

  function tellRange() {
    const span = view.t1 - view.t0;
    const share = span / end;
    at('range').textContent = `${seconds(view.t0, span)} to ${seconds(view.t1, span)}`
      + ` (${share > 0.9999 ? 'all' : (share * 100).toPrecision(2) + ' %'} of the run),`
      + ` lanes ${view.lane0 + 1} to ${view.lane0 + view.rows} of ${lanes}`;
  }

  function choose(r, show) {
    view.chosen = r;
    tellStory(model, r, (one) => { zoomTo(one); stage.focus(); });
    if (r >= 0) at('find').value = table.request_id[r];
    if (r >= 0 && show) reveal(r);
    redraw();
  }

  function reveal(r) {
    const span = view.t1 - view.t0;
    if (slices.end[r] < view.t0 || table.begin[r] > view.t1) {
      view.t0 = table.begin[r] - span / 3;
      view.t1 = view.t0 + span;
    }
    const lane = table.lane[r];
    if (lane < view.lane0 || lane >= view.lane0 + view.rows) view.lane0 = lane - (view.rows >> 1);
  }

  function zoomTo(r) {
    const span = Math.max(MIN_SPAN, (slices.end[r] - table.begin[r]) * 1.3);
    view.t0 = (table.begin[r] + slices.end[r] - span) / 2;
    view.t1 = view.t0 + span;
    reveal(r);
    redraw();
  }

  function zoom(factor, x) {
    const middle = x === undefined ? (view.t0 + view.t1) / 2 : picture.timeAt(x);
    const span = Math.min(end, Math.max(MIN_SPAN, (view.t1 - view.t0) * factor));
    const share = (middle - view.t0) / (view.t1 - view.t0);
    view.t0 = middle - share * span;
    view.t1 = view.t0 + span;
    redraw();
  }

  function pan(share) {
    const shift = share * (view.t1 - view.t0);
    view.t0 += shift; view.t1 += shift;
    redraw();
  }

  function step(by) {
    if (!arrivals.length) return;
    let i = view.chosen >= 0 ? place[view.chosen] + by : arrivals.findIndex((r) => table.begin[r] >= view.t0);
    while (i >= 0 && i < arrivals.length && view.client >= 0 && table.client_id[arrivals[i]] !== view.client) i += by;
    if (i >= 0 && i < arrivals.length) choose(arrivals[i], true);
  }

  // The next one after the last that was shown, or in the picture; after the last the first again.
  function next() {
    const mine = (one) => view.client < 0 || table.client_id[one.r] === view.client;
    const fits = (one, i) => mine(one) && (jumped >= 0 ? i > jumped : one.from >= view.t0);
    let i = preemptions.findIndex(fits);
    if (i < 0) i = preemptions.findIndex(mine);
    if (i < 0) return;
    const one = preemptions[i];
    jumped = i;
    const span = Math.min(end, Math.max(MIN_SPAN, (one.to - one.from) * 5));
    view.t0 = one.from - span * 0.3;
    view.t1 = view.t0 + span;
    choose(one.r, true);
  }

  const actions = {
    next,
    in: () => zoom(0.5), out: () => zoom(2), left: () => pan(-0.25), right: () => pan(0.25),
    all: () => { jumped = -1; Object.assign(view, { t0: 0, t1: end, lane0: 0, rows: lanes }); redraw(); },
    taller: () => { view.rows = Math.ceil(view.rows / 2); if (view.chosen >= 0) reveal(view.chosen); redraw(); },
    lower: () => { view.rows *= 2; redraw(); },
  };
  const keys = {
    ArrowLeft: actions.left, ArrowRight: actions.right, '+': actions.in, '=': actions.in, '-': actions.out,
    0: actions.all, Home: actions.all, ArrowUp: () => step(-1), ArrowDown: () => step(1),
    n: next, Enter: () => { if (view.chosen >= 0) zoomTo(view.chosen); }, Escape: () => choose(-1),
    PageUp: () => { view.lane0 -= view.rows >> 1; redraw(); }, PageDown: () => { view.lane0 += view.rows >> 1; redraw(); },
  };

  // ---------------------------------------------------------------- hands

  stage.addEventListener('keydown', (event) => {
    const act = keys[event.key];
    if (!act || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    act();
  });
  const nextButton = document.querySelector('[data-do="next"]');
  nextButton.disabled = !preemptions.length;
  nextButton.textContent = `Next of ${preemptions.length} preemptions`;
  if (view.t1 < end) at('tail').hidden = false;
  for (const button of document.querySelectorAll('[data-do]')) button.addEventListener('click', actions[button.dataset.do]);
  document.addEventListener('click', (event) => {
    const link = event.target.closest('[data-request]');
    if (!link) return;
    const r = rows.get(Number(link.dataset.request));
    if (r === undefined) return;
    choose(r);
    zoomTo(r);
    at('viewer').scrollIntoView({ block: 'start' });
    stage.focus({ preventScroll: true });
  });

  const where = (event) => {
    const box = stage.getBoundingClientRect();
    return { x: event.clientX - box.left, y: event.clientY - box.top };
  };
  const down = new Map();
  let dragged = false;
  stage.addEventListener('pointerdown', (event) => {
    down.set(event.pointerId, where(event));
    stage.setPointerCapture(event.pointerId);
    dragged = down.size > 1;
  });
  stage.addEventListener('pointermove', (event) => {
    const now = where(event), before = down.get(event.pointerId);
    picture.point(now);
    if (!before) return;
    if (!dragged && Math.abs(now.x - before.x) + Math.abs(now.y - before.y) < 4) return;
    dragged = true;
    if (down.size === 2) {
      const other = [...down].find(([id]) => id !== event.pointerId)[1];
      zoom(Math.max(10, Math.abs(before.x - other.x)) / Math.max(10, Math.abs(now.x - other.x)), (now.x + other.x) / 2);
    } else {
      pan((before.x - now.x) / picture.size().width);
      view.lane0 += Math.round((before.y - now.y) / picture.laneHeight());
      if (Math.abs(before.y - now.y) < picture.laneHeight() / 2) now.y = before.y;
    }
    down.set(event.pointerId, now);
  });
  const lifted = (event) => {
    const place_ = down.get(event.pointerId);
    down.delete(event.pointerId);
    if (!place_ || dragged || event.type !== 'pointerup') return;
    const found = picture.hit(place_.x, place_.y);
    choose(found ? found.owner : -1);
  };
  stage.addEventListener('pointerup', lifted);
  stage.addEventListener('pointercancel', lifted);
  stage.addEventListener('pointerleave', () => { picture.point(null); });
  stage.addEventListener('dblclick', (event) => zoom(0.4, where(event).x));
  stage.addEventListener('wheel', (event) => {
    if (document.activeElement !== stage && !event.ctrlKey) return;
    event.preventDefault();
    if (Math.abs(event.deltaX) > Math.abs(event.deltaY)) pan(event.deltaX / picture.size().width);
    else zoom(1.0015 ** event.deltaY, where(event).x);
  }, { passive: false });

  at('find').addEventListener('input', () => {
    const text = at('find').value;
    const r = ids.get(text);
    if (r !== undefined) { choose(r, true); return; }
    const options = [];
    for (const id of ids.keys()) if (text && id.includes(text) && options.push(id) >= 20) break;
    at('ids').replaceChildren(...options.map((id) => { const one = element('option'); one.value = id; return one; }));
  });
  const named = table.client_id_names.map((name, code) => [name, code]).filter(([name]) => name !== null);
  if (named.length > 1) {
    at('clients').hidden = false;
    const select = at('client');
    element('option', 'all', select).value = '-1';
    for (const [name, code] of named.sort((a, b) => (a[0] < b[0] ? -1 : 1)).slice(0, 500)) element('option', name, select).value = code;
    select.addEventListener('change', () => { view.client = Number(select.value); redraw(); });
  }
  new ResizeObserver(() => { picture.measure(); picture.draw(); }).observe(stage);
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => { picture.measure(); redraw(); });
  picture.measure();
  picture.draw();
  stage.dataset.drawn = 'yes';
  performance.mark('lanes drawn');
}

async function main() {
  try {
    const [requests, slices, series] = await Promise.all(['requests', 'slices', 'series'].map(unpacked));
    const table = JSON.parse(new TextDecoder().decode(requests));
    start(table, decode(table, slices), sums(series, table.series));
  } catch (error) {
    at('range').textContent = `The lanes cannot be drawn here: ${error.message}`;
    throw error;
  }
}
// The text is painted first.
requestAnimationFrame(() => setTimeout(main));
